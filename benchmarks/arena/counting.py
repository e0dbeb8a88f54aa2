"""Counting beyond the length of training: addition modulo n, trained eight times as long as for state tracking.

A phase that is a little wrong turns further away with every element. Once all answers within the length of training
are right, hardly anything in the loss asks for a better one.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from arena import state_tracking
from arena.campaign import Cell, Record, markdown, tuned
from arena.rivals import BASIC, RIVALS
from arena.state_tracking import BUDGET, GRID, GROUPS, accuracies
from arena.trials import Budget

RIVAL_NAMES, TASKS = (*BASIC, "sem_unbounded", "sem_mamba3"), ("mod2", "mod3", "mod5", "mod7")
TIMES = 8  # as many steps
LONGER = ", longer"  # in the name of a task


def campaign(record: Record, seeds: int, budget: Budget = BUDGET) -> None:
    """All groups and seeds in one layer, rival after rival."""
    asked = [{"task": task + LONGER, "layers": 1, "seed": seed} for seed in range(seeds) for task in TASKS]
    for name in RIVAL_NAMES:
        # The learning rate is that of state tracking: after more steps several end at a loss of 0.0000.
        tuned(record, partial(state_tracking.measure, budget), GRID, name, [])
        tuned(record, partial(measure, longer(budget)), GRID, name, asked)


def longer(budget: Budget) -> Budget:
    """The budget of as many more steps."""
    return replace(budget, steps=TIMES * budget.steps)


def measure(budget: Budget, asked: list[Cell]) -> list[Cell]:
    """Trials of one rival, as `state_tracking.measure` has them, and how many steps they took."""
    groups = [each | {"task": each["task"].removesuffix(LONGER)} for each in asked]
    return [cell | {"steps": budget.steps} for cell in state_tracking.measure(budget, groups)]


def tables(record: Record) -> str:
    """The table of docs/arena.md, from the cells alone."""
    rows = [
        [RIVALS[name].title, *(accuracies(record, name, task + LONGER, 1) for task in TASKS)] for name in RIVAL_NAMES
    ]
    return markdown(["one layer", *(GROUPS[task] for task in TASKS)], rows)
