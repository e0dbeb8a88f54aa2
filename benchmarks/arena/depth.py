"""Depth against groups that do not commute: state tracking in one, two and four layers of about as many parameters.

Trained as long as `arena.counting`. The learning rate is chosen by S₃ in two layers, which is a new task to a model
that has solved addition in one.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from arena.campaign import Grid, Record, markdown, rate_table, tuned
from arena.counting import LONGER, TIMES, measure
from arena.rivals import RIVALS
from arena.state_tracking import BUDGET, GROUPS, accuracies
from arena.trials import Budget

RIVAL_NAMES, DEPTHS, TASKS = ("sem", "sem_real", "gpt", "mamba2", "gru"), (1, 2, 4), ("s3", "a5")
GRID = Grid("s3" + LONGER, 2)


def campaign(record: Record, seeds: int, budget: Budget = BUDGET) -> None:
    """Depth after depth of each rival."""
    longer = partial(measure, replace(budget, steps=TIMES * budget.steps))
    for name in RIVAL_NAMES:
        for layers in DEPTHS:
            asked = [{"task": task + LONGER, "layers": layers, "seed": seed} for seed in range(seeds) for task in TASKS]
            tuned(record, longer, GRID, name, asked)


def tables(record: Record) -> str:
    """The tables of docs/arena.md, from the cells alone."""
    asked = [(task, layers) for task in TASKS for layers in DEPTHS]
    rows = [
        [RIVALS[name].title, *(accuracies(record, name, task + LONGER, n) for task, n in asked)] for name in RIVAL_NAMES
    ]
    heading = ["layers", *(f"{GROUPS[task]}, {layers}" for task, layers in asked)]
    return markdown(heading, rows) + "\n\n" + rate_table(record, RIVAL_NAMES, GRID)
