"""Skipped steps in groups: neighbours with one cause are told of together."""

from __future__ import annotations

from dataclasses import dataclass

from sem_jax.reporting.charts import Mark
from sem_jax.reporting.runs import Run, number


@dataclass(frozen=True)
class Skips:
    """Steps skipped one after the other for one cause."""

    number: int  # of the group, from 1
    steps: list[int]
    cause: str
    leaf: str  # the first bad one; empty where no leaf is to blame
    lr_scale: float  # at the first of the steps, NaN where it is not recorded

    @property
    def span(self) -> str:
        """Such as "36" or "36 to 40"."""
        first, last = self.steps[0], self.steps[-1]
        return f"{first:,}" if first == last else f"{first:,} to {last:,}"

    def marks(self) -> list[Mark]:
        """A mark for each step; the number stands above the first."""
        where = f" in {self.leaf}" if self.leaf else ""
        return [
            Mark(float(step), f"step {step:,} skipped: {self.cause}{where}", self.number if i == 0 else None)
            for i, step in enumerate(self.steps)
        ]


def skips_of(run: Run) -> list[Skips]:
    """The skipped steps of a run, in their order."""
    groups: list[Skips] = []
    for line in sorted(run.split("skip"), key=lambda line: line["step"]):
        step, cause, leaf = line["step"], str(line.get("reason", "unknown")), str(line.get("leaf", ""))
        last = groups[-1] if groups else None
        if last and (last.cause, last.leaf) == (cause, leaf) and step - last.steps[-1] <= 1:
            last.steps.append(step)
        else:
            groups.append(Skips(len(groups) + 1, [step], cause, leaf, number(line, "lr_scale")))
    return groups
