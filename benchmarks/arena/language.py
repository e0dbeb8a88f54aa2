"""Language: the characters of a text file, at equal parameters and tokens, at equal time, and beyond the length of
training."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from figures import save_curves

from arena.campaign import Cell, Grid, Record, judged, markdown, mean_and_spread, rate_table, side_by_side, tuned
from arena.rivals import RIVALS
from arena.trials import Budget, Trained, judge, step_gflop, step_ms
from sem_jax.config import build, default
from sem_jax.data import Batch, Dataset, open_dataset

BUDGET = Budget(parameters=200_000, vocabulary=65, steps=1000, batch=12)
LENGTH, LAYERS = 64, 2
GRID = Grid("tokens", LAYERS)
RIVAL_NAMES = ("sem", "gpt", "mamba2", "gru", "sem_rotary", "sem_real", "sem_position", "sem_fixed", "sem_born")
TIMED = ("gpt", "mamba2", "gru")  # they also get the time that the SEM takes
MOST_STEPS = 4  # times the budget's
COSTS = {"step_ms": 0, "step_gflop": 2}  # of a step, and the digits that a table shows
CURVE = 40  # stretches of equal length that the training loss is averaged over
BUCKETS = (0, 64, 128, 256, 512, 1024)  # positions at which a stretch of the long sequences begins or ends


def campaign(record: Record, seeds: int, budget: Budget = BUDGET, path: str = "") -> None:
    """All models at equal tokens, then some at equal time, on the text file at `path`."""
    for name in RIVAL_NAMES:
        step_cost(record, name, budget, path)
    asked = [{"task": "tokens", "layers": LAYERS, "seed": seed} for seed in range(seeds)]
    for name in RIVAL_NAMES:
        tuned(record, partial(measure, budget, path), GRID, name, asked)
        if name in TIMED:
            longer = replace(budget, steps=steps_of_equal_time(record, name, budget, path))
            tuned(record, partial(measure, longer, path), GRID, name, [each | {"task": "time"} for each in asked])


def step_cost(record: Record, name: str, budget: Budget, path: str) -> Cell:
    """What a step of a rival takes of processor time, where this is called first, and of arithmetic."""
    batch = dataset(path, 0, budget.batch, LENGTH).train.batch(0)

    def measure(asked: list[Cell]) -> list[Cell]:
        del asked
        return [{cost.__name__: cost(name, budget, LAYERS, batch) for cost in (step_ms, step_gflop)}]

    return record.answers([{"rival": name, "task": "cost", "layers": LAYERS}], measure)[0]


def steps_of_equal_time(record: Record, name: str, budget: Budget, path: str) -> int:
    """How many steps take as long as the SEM's budget, in hundreds."""
    ours, theirs = (step_cost(record, each, budget, path)["step_ms"] for each in ("sem", name))
    return 100 * max(round(min(MOST_STEPS, ours / theirs) * budget.steps / 100), 1)


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

    return side_by_side(budget, asked, batches, judgement)


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
        cells, costs = judged(record, rival=name, task="tokens"), record.cells(rival=name, task="cost")
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

    def nats(cells: list[Cell]) -> str:
        return mean_and_spread([cell["nats"] for cell in cells], 4)

    rows, lengths = [], []
    for name in RIVAL_NAMES:
        equal_tokens = judged(record, rival=name, task="tokens")
        equal_time = judged(record, rival=name, task="time")
        steps = f"{equal_time[0]['steps']}" if equal_time else "–"
        cost = record.cells(rival=name, task="cost")
        costs = [mean_and_spread([cell[what] for cell in cost], digits) for what, digits in COSTS.items()]
        rows.append([RIVALS[name].title, nats(equal_tokens), nats(equal_time), steps, *costs])
        by_position = [cell["nats_by_position"] for cell in equal_tokens]
        lengths.append(
            [RIVALS[name].title, *(mean_and_spread(list(each), 3) for each in zip(*by_position, strict=True))]
        )
    stretches = [f"{first + 1} to {last}" for first, last in itertools.pairwise(BUCKETS)]
    return "\n\n".join(
        [
            markdown(
                ["nats a character", "equal tokens", "equal time", "its steps", "ms a step", "GFLOP a step"], rows
            ),
            markdown(["position", *stretches], [row for row in lengths if len(row) > 1]),
            rate_table(record, RIVAL_NAMES, GRID),
        ]
    )
