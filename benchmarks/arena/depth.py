"""Depth against groups that do not commute: state tracking in one, two and four layers of about as many parameters.

Trained as long as `arena.counting`. The learning rate is chosen for each group by itself, in two layers: the rate that
addition is learned at in one need not be the one for S₃, and where several rates solve S₃, A₅ may ask for another.
"""

from __future__ import annotations

import itertools
from functools import partial

from arena.campaign import RATE_HEADING, Grid, Record, judged, markdown, rate_row, tuned
from arena.counting import LONGER, longer, measure
from arena.rivals import OTHERS, RIVALS
from arena.state_tracking import BUDGET, GROUPS, accuracies
from arena.trials import Budget

RIVAL_NAMES, DEPTHS, TASKS = ("sem_mamba3", *OTHERS, "sem_real"), (1, 2, 4), ("s3", "a5")
GRIDS = {task: Grid(task + LONGER, 2) for task in TASKS}


def campaign(record: Record, seeds: int, budget: Budget = BUDGET) -> None:
    """Group after group and depth after depth of each rival."""
    for name in RIVAL_NAMES:
        for task, layers in itertools.product(TASKS, DEPTHS):
            asked = [{"task": task + LONGER, "layers": layers, "seed": seed} for seed in range(seeds)]
            tuned(record, partial(measure, longer(budget)), GRIDS[task], name, asked)


def tables(record: Record) -> str:
    """The tables of docs/arena.md, from the cells alone."""
    asked = list(itertools.product(TASKS, DEPTHS))
    heading, rows, rates = [f"{GROUPS[task]}, {layers}" for task, layers in asked], [], []
    for name in RIVAL_NAMES:
        rows.append([RIVALS[name].title, *(accuracies(record, name, task + LONGER, layers) for task, layers in asked)])
        for task, grid in GRIDS.items():
            if judged(record, rival=name, task=grid.task):
                rates.append([f"{RIVALS[name].title}, {GROUPS[task]}", *rate_row(record, name, grid)])
    return "\n\n".join([markdown(["layers", *heading], rows), markdown(RATE_HEADING, rates)])
