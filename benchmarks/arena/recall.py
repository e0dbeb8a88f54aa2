"""Recall: multi-query associative recall (Arora et al., 2023, arXiv:2312.04927) and selective copying (Gu and Dao,
2023, arXiv:2312.00752), both labelled as pairs (`arena.rivals.tagged`)."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial

import numpy as np

from arena.campaign import Cell, Grid, Record, judged, markdown, mean_and_spread, rate_table, run_trials, tuned
from arena.rivals import RIVALS, pairs
from arena.trials import Budget, Trained, judge
from sem_jax.data import Batch

VOCABULARY = 96  # token 0 is filler, 1..47 are keys, 48..95 are values
KEYS, VALUES = 47, 48
COPY_SYMBOLS = 16
BUDGET = Budget(parameters=48_000, vocabulary=VOCABULARY, steps=1000, batch=32, tags=True)
LAYERS = 2
GRID = Grid("mqar_64_4", LAYERS, seeds=3)  # whether a trial learns it is partly chance
RIVAL_NAMES = ("sem", "sem_unbounded", "sem_mamba3", "gpt", "mamba2", "gru", "sem_real", "sem_fixed")
TASKS = {
    "mqar_64_4": "recall, 4 pairs in 64 tokens",
    "copy_64_8": "copying, 8 symbols in 64 tokens",
    "mqar_128_8": "recall, 8 pairs in 128 tokens",
}


def associative(rows: int, length: int, items: int, seed: tuple[int, ...]) -> Batch:
    """Pairs of key and value, then each key once more at a random place among filler; its answer is its value."""
    rng = np.random.default_rng(seed)
    inputs, answers = np.zeros((2, rows, length), np.int64)
    weights = np.zeros((rows, length), np.float32)
    for row in range(rows):
        keys = 1 + rng.permutation(KEYS)[:items]
        values = 1 + KEYS + rng.integers(VALUES, size=items)
        places = 2 * items + rng.permutation(length - 2 * items)[:items]
        inputs[row, 0 : 2 * items : 2], inputs[row, 1 : 2 * items : 2] = keys, values
        inputs[row, places], answers[row, places] = keys, values
        weights[row, places] = 1
    return pairs(inputs, answers, weights, VOCABULARY)


def copying(rows: int, length: int, symbols: int, seed: tuple[int, ...]) -> Batch:
    """Symbols at random places among filler, then as many marks; the answer to the n-th mark is the n-th symbol."""
    rng = np.random.default_rng(seed)
    inputs, answers = np.zeros((2, rows, length), np.int64)
    weights = np.zeros((rows, length), np.float32)
    body = length - symbols
    for row in range(rows):
        places = np.sort(rng.permutation(body)[:symbols])
        inputs[row, places] = 1 + rng.integers(COPY_SYMBOLS, size=symbols)
        answers[row, body:] = inputs[row, places]
    inputs[:, body:] = 1 + COPY_SYMBOLS
    weights[:, body:] = 1
    return pairs(inputs, answers, weights, VOCABULARY)


def batch(task: str, rows: int, seed: tuple[int, ...]) -> Batch:
    """Sequences of a task by its name, such as "mqar_64_4"."""
    kind, length, items = task.split("_")
    return {"mqar": associative, "copy": copying}[kind](rows, int(length), int(items), seed)


def campaign(record: Record, seeds: int, budget: Budget = BUDGET) -> None:
    """All tasks of one length in one program, rival after rival."""
    groups = [tuple(group) for _, group in itertools.groupby(TASKS, key=lambda task: task.split("_")[1])]
    for name in RIVAL_NAMES:
        for group in groups:
            asked = [{"task": task, "layers": LAYERS, "seed": seed} for seed in range(seeds) for task in group]
            tuned(record, partial(measure, budget), GRID, name, asked)


def measure(budget: Budget, asked: list[Cell]) -> list[Cell]:
    """Trials of one rival: each the loss at the end of training, and the share of right answers to 512 sequences."""

    def batches(asked: Cell) -> Callable[[int], Batch]:
        return lambda number: batch(asked["task"], budget.batch, (asked["seed"], number))

    def judgement(asked: Cell, found: Trained) -> Cell:
        held_out = [batch(asked["task"], 32, (2**31, number)) for number in range(16)]
        right = [judge(asked["rival"], budget, found.parts, each)[1][each.weights > 0] for each in held_out]
        return {"accuracy": round(float(np.mean(np.concatenate(right))), 4)}

    return run_trials(budget, asked, batches, judgement)


def tables(record: Record) -> str:
    """The tables of docs/arena.md, from the cells alone."""
    rows = []
    for name in RIVAL_NAMES:
        cells = [judged(record, rival=name, task=task) for task in TASKS]
        rows.append([RIVALS[name].title, *(mean_and_spread([100 * c["accuracy"] for c in each], 1) for each in cells)])
    return markdown(["percent right", *TASKS.values()], rows) + "\n\n" + rate_table(record, RIVAL_NAMES, GRID)
