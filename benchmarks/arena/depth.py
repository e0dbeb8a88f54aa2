"""Depth against groups that do not commute: state tracking in two and four layers of about as many parameters."""

from __future__ import annotations

from functools import partial

from arena.campaign import Record, markdown, tuned
from arena.rivals import RIVALS
from arena.state_tracking import BUDGET, GRID, GROUPS, accuracies, measure
from arena.trials import Budget

RIVAL_NAMES, DEPTHS, TASKS = ("sem", "sem_rotary", "sem_real", "gpt", "mamba2"), (2, 4), ("s3", "a5")


def campaign(record: Record, seeds: int, budget: Budget = BUDGET) -> None:
    """Depth after depth of each rival."""
    for name in RIVAL_NAMES:
        for layers in DEPTHS:
            asked = [{"task": task, "layers": layers, "seed": seed} for seed in range(seeds) for task in TASKS]
            tuned(record, partial(measure, budget), GRID, name, asked)


def tables(record: Record) -> str:
    """The table of docs/arena.md, from the cells alone."""
    asked = [(task, layers) for task in TASKS for layers in (1, *DEPTHS)]
    rows = [[RIVALS[name].title, *(accuracies(record, name, *each) for each in asked)] for name in RIVAL_NAMES]
    return markdown(["layers", *(f"{GROUPS[task]}, {layers}" for task, layers in asked)], rows)
