"""The Python standard library by bytes, 5 million parameters, context 128: at equal parameters, tokens and time."""

from __future__ import annotations

from dataclasses import replace

from arena import scaling
from arena.campaign import TUNING_SEED, Cell, Grid, Record, rate_table
from arena.equal_time import Comparison, comparison_table
from arena.library import measure_on
from arena.trials import Budget

BUDGET = Budget(parameters=5_000_000, vocabulary=261, steps=1000, batch=8)
GRID = Grid("tokens", 6)
TUNING_PART = 5  # a learning rate is chosen after a fifth of the steps
RIVAL_NAMES = ("sem", "gpt", "mamba2", "gru")


def campaign(record: Record, seeds: int, budget: Budget = BUDGET) -> None:
    """All models at equal tokens, then some at equal time."""
    batch = scaling.dataset(0, budget.batch).train.batch(0)
    Comparison(GRID, budget, batch, measure).campaign(record, RIVAL_NAMES, seeds)


def measure(budget: Budget, asked: list[Cell]) -> list[Cell]:
    """Trials of one rival, one by one: side by side, models of this width take longer (see `arena.trials`)."""
    return [cell for each in asked for cell in measure_on(scaling.dataset, of_trial(budget, each), [each])]


def of_trial(budget: Budget, asked: Cell) -> Budget:
    """The budget of a trial: one that chooses a learning rate takes a part of the steps."""
    return replace(budget, steps=budget.steps // TUNING_PART) if asked["seed"] == TUNING_SEED else budget


def tables(record: Record) -> str:
    """The tables of docs/arena.md, from the cells alone."""
    table = comparison_table(record, RIVAL_NAMES, GRID.task, "bits", "bits a byte")
    return f"{table}\n\n{rate_table(record, RIVAL_NAMES, GRID)}"
