"""What `sem-jax train --rescue` changes in a run that has diverged: the report's remedies, in the report's order.

The report on the original's training said: "If a run is still unstable, change in this order: learning_rate = 6e-4,
temperature = 0, cg_max_iter = 10". Each remedy is taken once in the life of a run. It is recorded in config.json, so
that a later start, with --rescue or without, goes on with it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sem_jax.config import Config, build, lookup, override
from sem_jax.training.checkpoint import Checkpointer

_LEARNING_RATE = 6e-4
_CG_ITERATIONS = 10
_FIELDS = ("optimizer.learning_rate", "optimizer.thermostat", "optimizer.temperature", "model.propagator.cg_max_iter")
_LONGEST_CAUSE = 500  # characters


class Remedy(NamedTuple):
    """A field that a rescue has changed."""

    field: str  # such as "optimizer.learning_rate"
    before: float | str
    after: float | str
    cause: str  # for which the run had diverged

    def __str__(self) -> str:
        return f"config.{self.field} = {self.after} (it was {self.before})"


def next_remedy(config: Config, taken: Sequence[Remedy], cause: str, say: Callable[[str], None]) -> Remedy | None:
    """The first remedy that a run has not taken and that changes anything; None where none is left.

    Args:
      config: with which the run has diverged.
      taken: by the run so far.
      cause: of the divergence.
      say: takes a line on each remedy that is passed over.
    """
    for field, after, why in _remedies(config):
        if field in {remedy.field for remedy in taken}:
            continue
        before = lookup(config, field)
        if after != before:
            return Remedy(field, before, after, cause[:_LONGEST_CAUSE])
        say(f"rescue: config.{field} is passed over: {why}")
    return None


def _remedies(config: Config) -> Iterator[tuple[str, float | str, str]]:
    """(field, value, why the value is the present one, where it is) in the report's order."""
    optimizer, propagator = config.optimizer, config.model.propagator
    # 6e-4 is half of the report's 1.2e-3. A run that is slower than that already is given half of its own rate.
    rate = optimizer.learning_rate
    yield "optimizer.learning_rate", _LEARNING_RATE if rate > _LEARNING_RATE else rate / 2, ""
    if optimizer.thermostat == "posterior":  # which would set another temperature than 0
        yield "optimizer.thermostat", "fixed", ""
    yield "optimizer.temperature", 0.0, "it is 0 already"
    solver, iterations = propagator.solver, propagator.cg_max_iter
    if solver == "cg":
        yield "model.propagator.cg_max_iter", max(_CG_ITERATIONS, iterations), f"it is {iterations} already"
    else:
        yield "model.propagator.cg_max_iter", iterations, f"solver = {solver} does not get better by it"


def with_remedies(config: Config, remedies: Iterable[Remedy]) -> Config:
    """The configuration with what has been changed; a field that has another value than before it stays as it is."""
    changes = {remedy.field: remedy.after for remedy in remedies if lookup(config, remedy.field) == remedy.before}
    return build(override(dataclasses.asdict(config), changes)) if changes else config


def in_effect(config: Config, remedies: Iterable[Remedy]) -> list[Remedy]:
    """The remedies that a configuration has taken."""
    return [remedy for remedy in remedies if lookup(config, remedy.field) == remedy.after]


def remedies_in(record: dict[str, Any]) -> list[Remedy]:
    """The remedies that config.json tells of; raises KeyError where it tells something else."""
    found = record.get("remedies", [])
    if not isinstance(found, list) or not all(isinstance(each, list) and len(each) == 4 for each in found):
        raise KeyError("remedies")
    remedies = [Remedy(*each) for each in found]
    if not all(each.field in _FIELDS and isinstance(each.cause, str) for each in remedies):
        raise KeyError("remedies")
    return remedies


def set_unsound_aside(folder: Path, keep: int, say: Callable[[str], None]) -> int | None:
    """Renames the checkpoints that are newer than the newest that is intact and finite; for all processes together.

    Returns:
      The step of that one; None if there is none.

    Raises:
      CheckpointError: one cannot be renamed.
    """
    with Checkpointer(folder, keep) as checkpoints:
        good = checkpoints.newest_finite()
        while (newest := checkpoints.latest_step()) is not None and newest != good:
            say(f"rescue: {checkpoints.path(newest)} is not sound; it is called {checkpoints.set_aside(newest)} now")
        return good
