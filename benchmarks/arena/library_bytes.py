"""The Python standard library by bytes, 5 million parameters, context 128: at equal parameters, tokens and time."""

from __future__ import annotations

from dataclasses import replace

from arena import library, scaling
from arena.campaign import Cell, Grid, Record, tunes
from arena.equal_time import Comparison
from arena.rivals import BASIC
from arena.trials import Budget

BUDGET = Budget(parameters=5_000_000, vocabulary=261, steps=1000, batch=8)
GRID = Grid("tokens", 6)
RIVAL_NAMES = (*BASIC, "sem_unbounded", "sem_mamba3")
TUNING_PART = 5  # a learning rate is chosen after a fifth of the steps


def campaign(record: Record, seeds: int, budget: Budget = BUDGET) -> None:
    """All models at equal tokens, then some at equal time."""
    batch = scaling.dataset(0, budget.batch).train.batch(0)
    Comparison(GRID, budget, batch, measure).campaign(record, RIVAL_NAMES, seeds)


def measure(budget: Budget, asked: list[Cell]) -> list[Cell]:
    """Trials of one rival: each nats and bits a byte of held-out files. All choose a learning rate, or none does."""
    steps = budget.steps // TUNING_PART if tunes(asked[0]) else budget.steps
    return library.measure_on(scaling.dataset, replace(budget, steps=steps), asked)


def tables(record: Record) -> str:
    """The tables of docs/arena.md, from the cells alone."""
    return library.tables(record, RIVAL_NAMES, GRID)
