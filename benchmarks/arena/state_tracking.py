"""State tracking: the product of all elements of a group that were read so far.

A state that only decays cannot count modulo n, whatever its width; one that turns can. No single diagonal layer, real
or complex, can follow a group whose elements do not commute (Merrill et al., 2024, arXiv:2404.08819).
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from functools import partial

import numpy as np

from arena.campaign import Cell, Grid, Record, judged, markdown, rate_table, run_trials, tuned
from arena.rivals import RIVALS, pairs
from arena.trials import Budget, Trained, judge
from sem_jax.data import Batch

VOCABULARY = 60  # of every group, so that all of them run the same programs


def cyclic(order: int) -> np.ndarray:
    """The table of addition modulo n: entry [a, b] is a + b."""
    return np.add.outer(np.arange(order), np.arange(order)) % order


def permutations(size: int, even: bool = False) -> np.ndarray:
    """The table of the symmetric group, or of the alternating one: entry [a, b] is first a, then b."""
    members = [p for p in itertools.permutations(range(size)) if not (even and _is_odd(p))]
    number = {p: i for i, p in enumerate(members)}
    return np.array([[number[tuple(b[i] for i in a)] for b in members] for a in members])


def _is_odd(permutation: tuple[int, ...]) -> bool:
    pairs = itertools.combinations(permutation, 2)
    return sum(a > b for a, b in pairs) % 2 == 1


@functools.cache
def table(group: str) -> np.ndarray:
    """Products of the elements of a group, by its name."""
    if group.startswith("mod"):
        return cyclic(int(group[3:]))
    return {"s3": permutations(3), "a5": permutations(5, even=True)}[group]


GROUPS = {"mod2": "parity", "mod3": "mod 3", "s3": "S₃", "a5": "A₅", "mod5": "mod 5", "mod7": "mod 7"}


def batch(group: str, rows: int, length: int, seed: tuple[int, ...]) -> Batch:
    """Uniform elements, each with the product of all up to it as its answer, as pairs (`arena.rivals.tagged`)."""
    products = table(group)
    elements = np.random.default_rng(seed).integers(len(products), size=(rows, length))
    answers = np.empty_like(elements)
    state = np.zeros(rows, np.int64)  # the neutral element comes first in each table
    for place in range(length):
        state = products[state, elements[:, place]]
        answers[:, place] = state
    return pairs(elements, answers, np.ones((rows, length), np.float32), VOCABULARY)


BUDGET = Budget(parameters=24_000, vocabulary=VOCABULARY, steps=600, batch=32, tags=True)
LENGTH, LENGTHS = 40, (40, 256, 1024)
ROWS, ANSWERS = 64, 16  # accuracy counts the last answers of so many sequences
RIVAL_NAMES = (
    "sem",
    "sem_unbounded",
    "sem_mamba3",
    "sem_position",
    "sem_real",
    "gpt",
    "mamba2",
    "gru",
    "sem_no_rotation",
    "sem_fixed",
)
GRID = Grid("mod3", 1)


def campaign(record: Record, seeds: int, budget: Budget = BUDGET) -> None:
    """All groups and seeds in one layer, rival after rival."""
    asked = [{"task": task, "layers": 1, "seed": seed} for seed in range(seeds) for task in GROUPS]
    for name in RIVAL_NAMES:
        tuned(record, partial(measure, budget), GRID, name, asked)


def measure(budget: Budget, asked: list[Cell]) -> list[Cell]:
    """Trials of one rival: each the loss at the end of training, and the share of right answers at each length."""

    def batches(asked: Cell) -> Callable[[int], Batch]:
        return lambda number: batch(asked["task"], budget.batch, LENGTH, (asked["seed"], number))

    def accuracy(asked: Cell, found: Trained, length: int) -> float:
        # Few rows at a time: at 1024 tokens the scores of 64 sequences would take a gigabyte.
        held_out = (batch(asked["task"], 8, length, (2**31, length, number)) for number in range(ROWS // 8))
        parts = [judge(asked["rival"], budget, found.parts, each)[1][:, -ANSWERS:] for each in held_out]
        return round(float(np.mean(parts)), 4)

    def judgement(asked: Cell, found: Trained) -> Cell:
        return {f"accuracy_{length}": accuracy(asked, found, length) for length in LENGTHS}

    return run_trials(budget, asked, batches, judgement)


def tables(record: Record) -> str:
    """The tables of docs/arena.md, from the cells alone."""
    rows = [[RIVALS[name].title, *(accuracies(record, name, task, 1) for task in GROUPS)] for name in RIVAL_NAMES]
    return markdown(["one layer", *GROUPS.values()], rows) + "\n\n" + rate_table(record, RIVAL_NAMES, GRID)


def accuracies(record: Record, name: str, task: str, layers: int) -> str:
    """Percent after each length, and the largest deviation over the seeds."""
    cells = judged(record, rival=name, task=task, layers=layers)
    if not cells:
        return "–"
    shares = [[100 * cell[f"accuracy_{length}"] for cell in cells] for length in LENGTHS]
    spread = f" ±{max(np.std(share, ddof=1) for share in shares):.0f}" if len(cells) > 1 else ""
    return " / ".join(f"{np.mean(share):.0f}" for share in shares) + spread
