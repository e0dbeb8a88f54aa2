"""Language: the characters of a text file, at equal parameters and tokens, at equal time, and beyond the length of
training."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from figures import save_curves

from arena.campaign import Cell, Grid, Record, judged, markdown, mean_and_spread, rate_table, run_trials
from arena.equal_time import Comparison, comparison_table, costs_of
from arena.rivals import BASIC, RIVALS
from arena.trials import Budget, Trained, judge
from sem_jax.config import build, default
from sem_jax.data import Batch, Dataset, open_dataset

BUDGET = Budget(parameters=200_000, vocabulary=65, steps=1000, batch=12)
LENGTH, LAYERS = 64, 2
GRID = Grid("tokens", LAYERS)
RIVAL_NAMES = (
    *BASIC,
    "sem_unbounded",
    "sem_mamba3",
    "sem_real",
    "sem_position",
    "sem_fixed",
    "sem_born",
    "sem_power",
)
CURVE = 40  # stretches of equal length that the training loss is averaged over
BUCKETS = (0, 64, 128, 256, 512, 1024)  # positions at which a stretch of the long sequences begins or ends


def campaign(record: Record, seeds: int, budget: Budget = BUDGET, path: str = "") -> None:
    """All models at equal tokens, then some at equal time, on the text file at `path`."""
    comparison(path, budget).campaign(record, RIVAL_NAMES, seeds)


def comparison(path: str, budget: Budget) -> Comparison:
    """What the models are compared by."""
    batch = dataset(path, 0, budget.batch, LENGTH).train.batch(0)
    return Comparison(GRID, budget, batch, lambda budget, asked: measure(budget, path, asked))


def measure(budget: Budget, path: str, asked: list[Cell]) -> list[Cell]:
    """Trials of one rival: each nats a character in windows of the training length, and by position in longer ones."""

    def batches(asked: Cell) -> Callable[[int], Batch]:
        return dataset(path, asked["seed"], budget.batch, LENGTH).train.batch

    def judgement(asked: Cell, found: Trained) -> Cell:
        held_out = dataset(path, asked["seed"], budget.batch, LENGTH).validation.evaluation_batches(100)
        long = dataset(path, 0, budget.batch, BUCKETS[-1]).validation.evaluation_batches(10)
        by_position = _nats(asked["rival"], budget, found, long).mean(axis=0)
        stretches = [float(by_position[first:last].mean()) for first, last in itertools.pairwise(BUCKETS)]
        return {
            "steps": budget.steps,
            "nats": round(float(np.mean(_nats(asked["rival"], budget, found, held_out))), 4),
            "nats_by_position": [round(stretch, 4) for stretch in stretches],
            "curve": [round(float(part.mean()), 3) for part in np.array_split(found.losses, CURVE)],
        }

    return run_trials(budget, asked, batches, judgement)


@functools.cache
def dataset(path: str, seed: int, batch: int, length: int) -> Dataset:
    """The first 90 % of the text to train on and the last 10 % to judge by, in random windows."""
    config = default()
    config.data.update(source="text", path=path, split="tail", validation_fraction=0.1)
    config.data.update(tokenizer="char", packing="windows", seq_length=length)
    return open_dataset(build(config).data, seed, batch)


def _nats(rival: str, budget: Budget, found: Trained, batches: Iterator[Batch]) -> np.ndarray:
    return np.concatenate([judge(rival, budget, found.parts, batch)[0] for batch in batches])


def curves(record: Record, cost: str) -> dict[str, tuple[list[float], list[float]]]:
    """The training losses of all models at equal tokens, the mean over their seeds, by title.

    Args:
      record: the cells.
      cost: "step_ms", for curves against the seconds of processor time so far, or "step_gflop", against the GFLOP.

    Returns:
      (cost so far, nats a character) at the end of each stretch of steps.
    """
    found = {}
    for name in RIVAL_NAMES:
        cells, costs = judged(record, rival=name, task=GRID.task), costs_of(record, name)
        if cells and costs:
            a_step = costs[0][cost] / (1e3 if cost == "step_ms" else 1)
            stretches = np.arange(1, len(cells[0]["curve"]) + 1) / len(cells[0]["curve"])
            losses = np.mean([cell["curve"] for cell in cells], axis=0)
            found[RIVALS[name].title] = ((a_step * cells[0]["steps"] * stretches).tolist(), losses.tolist())
    return found


def draw(record: Record, folder: Path) -> None:
    """Pictures of the curves, arena_seconds.svg and arena_gflop.svg."""
    for cost, file, label in (
        ("step_ms", "arena_seconds.svg", "seconds of one thread"),
        ("step_gflop", "arena_gflop.svg", "GFLOP"),
    ):
        save_curves(str(folder / file), curves(record, cost), label, "nats a character, training", marker="")


def tables(record: Record) -> str:
    """The tables of docs/arena.md, from the cells alone."""
    lengths = []
    for name in RIVAL_NAMES:
        by_position = [cell["nats_by_position"] for cell in judged(record, rival=name, task=GRID.task)]
        lengths.append(
            [RIVALS[name].title, *(mean_and_spread(list(each), 3) for each in zip(*by_position, strict=True))]
        )
    stretches = [f"{first + 1} to {last}" for first, last in itertools.pairwise(BUCKETS)]
    return "\n\n".join(
        [
            comparison_table(record, RIVAL_NAMES, GRID.task, "nats", "nats a character"),
            markdown(["position", *stretches], [row for row in lengths if len(row) > 1]),
            rate_table(record, RIVAL_NAMES, GRID),
        ]
    )
