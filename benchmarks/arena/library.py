"""The Python standard library by BPE, in the budget of configs/quickstart.py: at equal parameters, tokens and time."""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np

from arena.campaign import Cell, Grid, Record, rate_table, run_trials
from arena.equal_time import Comparison, comparison_table
from arena.rivals import BASIC, ENDS, OTHERS
from arena.trials import Budget, Trained, judge
from sem_jax.config import build, default
from sem_jax.data import Batch, Dataset, open_dataset
from sem_jax.training.metrics import bits_per_byte

BUDGET = Budget(parameters=1_250_000, vocabulary=2048, steps=1000, batch=16)
LENGTH = 64
GRID = Grid("tokens", 4)
RIVAL_NAMES = ("sem_mamba3", *OTHERS, *(name + ENDS for name in (*BASIC, "sem_unbounded", "sem_mamba3")))
JUDGED = 100  # batches of held-out files


def campaign(record: Record, seeds: int, budget: Budget = BUDGET) -> None:
    """All models at equal tokens, then some at equal time."""
    batch = dataset(0, budget.batch).train.batch(0)
    Comparison(GRID, budget, batch, measure).campaign(record, RIVAL_NAMES, seeds)


def measure(budget: Budget, asked: list[Cell]) -> list[Cell]:
    """Trials of one rival: each nats a token and bits a byte of held-out files."""
    return measure_on(dataset, budget, asked)


def dataset(seed: int, batch: int) -> Dataset:
    """The library by the quickstart's BPE."""
    return standard_library("bpe", LENGTH, seed, batch)


@functools.cache
def standard_library(tokenizer: str, length: int, seed: int, batch: int) -> Dataset:
    """The library in sequences of one length; whole files are held out."""
    config = default()
    config.data.update(source="pystdlib", tokenizer=tokenizer, bpe_vocab_size=BUDGET.vocabulary, seq_length=length)
    return open_dataset(build(config).data, seed, batch)


def measure_on(dataset: Callable[[int, int], Dataset], budget: Budget, asked: list[Cell]) -> list[Cell]:
    """Trials of one rival on dataset(seed, batch): each nats a token and bits a byte of held-out files."""

    def batches(asked: Cell) -> Callable[[int], Batch]:
        return dataset(asked["seed"], budget.batch).train.batch

    def judgement(asked: Cell, found: Trained) -> Cell:
        judges = dataset(0, budget.batch)
        held_out = list(judges.validation.evaluation_batches(JUDGED))
        of_tokens = [judge(asked["rival"], budget, found.parts, batch)[0] for batch in held_out]
        nats = float(np.average(of_tokens, weights=[batch.weights for batch in held_out]))
        bits = bits_per_byte(nats, judges.bytes_per_token)
        return {"steps": budget.steps, "nats": round(nats, 4), "bits": round(bits, 4)}

    return run_trials(budget, asked, batches, judgement)


def tables(record: Record, rivals: tuple[str, ...] = RIVAL_NAMES, grid: Grid = GRID) -> str:
    """The tables of docs/arena.md, from the cells alone."""
    table = comparison_table(record, rivals, grid.task, "bits", "bits a byte")
    return f"{table}\n\n{rate_table(record, rivals, grid)}"
