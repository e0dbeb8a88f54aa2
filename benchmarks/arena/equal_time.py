"""Tables of language: all rivals after as many tokens, and some after as much processor time as the SEM takes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from arena.campaign import Cell, Grid, Record, judged, markdown, mean_and_spread, tuned
from arena.rivals import RIVALS
from arena.trials import Budget, step_gflop, step_ms
from sem_jax.data import Batch

MOST_STEPS = 4  # times the budget's
COSTS = {"step_ms": 0, "step_gflop": 2}  # of a step, and the digits that a table shows


@dataclass(frozen=True)
class Comparison:
    """What all rivals of such a table share."""

    grid: Grid
    budget: Budget
    batch: Batch  # any of training
    measure: Callable[[Budget, list[Cell]], list[Cell]]  # trials of one rival

    def campaign(self, record: Record, rivals: tuple[str, ...], seeds: int) -> None:
        """All at equal tokens, then some at equal time."""
        for name in rivals:
            self.step_cost(record, name)
        asked = [{"task": self.grid.task, "layers": self.grid.layers, "seed": seed} for seed in range(seeds)]
        for name in rivals:
            tuned(record, partial(self.measure, self.budget), self.grid, name, asked)
            if not name.startswith("sem"):
                longer = partial(self.measure, replace(self.budget, steps=self.steps_of_equal_time(record, name)))
                tuned(record, longer, self.grid, name, [each | {"task": "time"} for each in asked])

    def step_cost(self, record: Record, name: str) -> Cell:
        """What a step of a rival takes of processor time, where this is called first, and of arithmetic."""
        name = RIVALS[name].step_of or name
        step = name, self.budget, self.grid.layers, self.batch
        asked = [{"rival": name, "task": "cost", "layers": self.grid.layers}]
        return record.answers(asked, lambda _: [{"step_ms": step_ms(*step), "step_gflop": step_gflop(*step)}])[0]

    def steps_of_equal_time(self, record: Record, name: str) -> int:
        """How many steps take as long as the SEM's budget, in hundreds."""
        ours, theirs = (self.step_cost(record, each)["step_ms"] for each in ("sem", name))
        return 100 * max(round(min(MOST_STEPS, ours / theirs) * self.budget.steps / 100), 1)


def costs_of(record: Record, name: str) -> list[Cell]:
    """What a step of a rival costs, if it was timed."""
    return record.cells(rival=RIVALS[name].step_of or name, task="cost")


def comparison_table(record: Record, rivals: tuple[str, ...], task: str, value: str, unit: str) -> str:
    """A value of the cells at equal tokens and at equal time, and what a step costs.

    Args:
      record: the cells.
      rivals: the rows.
      task: of the cells at equal tokens.
      value: its name in a cell.
      unit: the heading of the first column.
    """
    rows = []
    for name in rivals:
        found = [judged(record, rival=name, task=each) for each in (task, "time")]
        values = [mean_and_spread([cell[value] for cell in cells], 4) for cells in found]
        steps = f"{found[1][0]['steps']}" if found[1] else "–"
        cost = costs_of(record, name)
        costs = [mean_and_spread([cell[what] for cell in cost], digits) for what, digits in COSTS.items()]
        rows.append([RIVALS[name].title, *values, steps, *costs])
    return markdown([unit, "equal tokens", "equal time", "its steps", "ms a step", "GFLOP a step"], rows)
