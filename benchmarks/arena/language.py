"""Language: the characters of a text file, at equal parameters and tokens, at equal time, and beyond the length of
training."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import numpy as np

from arena.campaign import TUNING_SEED, Cell, Grid, Record, judged, markdown, mean_and_spread, rate_table, trial
from arena.rivals import RIVALS
from arena.trials import Budget, Trained, judge, train, trial_values
from sem_jax.config import build, default
from sem_jax.data import Batch, Dataset, open_dataset

BUDGET = Budget(parameters=200_000, vocabulary=65, steps=1000, batch=12)
LENGTH, LAYERS = 64, 2
GRID = Grid((4e-3, 1.2e-2), "tokens", LAYERS)
RIVAL_NAMES = ("sem", "gpt", "mamba2", "gru", "sem_real", "sem_no_position", "sem_fixed", "sem_born")
TIMED = ("gpt", "mamba2", "gru")  # they also get the time that the SEM takes
MOST_STEPS = 4  # times the budget's
BUCKETS = (0, 64, 128, 256, 512, 1024)  # positions at which a stretch of the long sequences begins or ends


def campaign(record: Record, seeds: int, budget: Budget = BUDGET, path: str = "") -> None:
    """All models at equal tokens, then some at equal time, seed after seed, on the text file at `path`."""
    for seed in range(seeds):
        for name in RIVAL_NAMES:
            what = {"rival": name, "layers": LAYERS, "seed": seed}
            trial(record, partial(measure, budget, path), GRID, task="tokens", **what)
        for name in TIMED:
            longer = replace(budget, steps=steps_of_equal_time(record, name, budget))
            what = {"rival": name, "layers": LAYERS, "seed": seed}
            trial(record, partial(measure, longer, path), GRID, task="time", **what)


def steps_of_equal_time(record: Record, name: str, budget: Budget) -> int:
    """How many steps take as long as the SEM's budget, in hundreds, by the steps of the first seed."""
    sem, rival = (judged(record, rival=each, task="tokens", seed=0)[0]["step_ms"] for each in ("sem", name))
    return 100 * max(round(min(MOST_STEPS, sem / rival) * budget.steps / 100), 1)


def measure(budget: Budget, path: str, rival: str, task: str, layers: int, rate: float, seed: int) -> Cell:
    """One trial: nats a character in windows of the training length, and by position in longer ones."""
    del task
    data = dataset(path, seed, budget.batch, LENGTH)
    found = train(rival, budget, layers, rate, seed, data.train.batch)
    cell = trial_values(rival, budget, layers, found) | {"steps": budget.steps}
    if seed != TUNING_SEED:
        held_out = data.validation.evaluation_batches(100)
        long = dataset(path, 0, budget.batch, BUCKETS[-1]).validation.evaluation_batches(10)
        cell["nats"] = round(float(np.mean(_nats(rival, budget, found, held_out))), 4)
        by_position = _nats(rival, budget, found, long).mean(axis=0)
        cell["nats_by_position"] = [
            round(float(by_position[first:last].mean()), 4) for first, last in itertools.pairwise(BUCKETS)
        ]
    return cell


@functools.cache
def dataset(path: str, seed: int, batch: int, length: int) -> Dataset:
    """The first 90 % of the text to train on and the last 10 % to judge by, in random windows."""
    config = default()
    config.data.update(source="text", path=path, split="tail", validation_fraction=0.1)
    config.data.update(tokenizer="char", packing="windows", seq_length=length)
    return open_dataset(build(config).data, seed, batch)


def _nats(rival: str, budget: Budget, found: Trained, batches: Iterator[Batch]) -> np.ndarray:
    return np.concatenate([judge(rival, budget, found.parts, batch)[0] for batch in batches])


def tables(record: Record) -> str:
    """The tables of docs/arena.md, from the cells alone."""

    def nats(cells: list[Cell]) -> str:
        return mean_and_spread([cell["nats"] for cell in cells], 4)

    rows, lengths = [], []
    for name in RIVAL_NAMES:
        equal_tokens = judged(record, rival=name, task="tokens")
        equal_time = judged(record, rival=name, task="time")
        steps = f"{equal_time[0]['steps']}" if equal_time else "–"
        step_ms = mean_and_spread([cell["step_ms"] for cell in equal_tokens], 0)
        rows.append([RIVALS[name].title, nats(equal_tokens), nats(equal_time), steps, step_ms])
        by_position = [cell["nats_by_position"] for cell in equal_tokens]
        lengths.append(
            [RIVALS[name].title, *(mean_and_spread(list(each), 3) for each in zip(*by_position, strict=True))]
        )
    stretches = [f"{first + 1} to {last}" for first, last in itertools.pairwise(BUCKETS)]
    return "\n\n".join(
        [
            markdown(["nats a character", "equal tokens", "equal time", "its steps", "ms a step"], rows),
            markdown(["position", *stretches], [row for row in lengths if len(row) > 1]),
            rate_table(record, RIVAL_NAMES, GRID),
        ]
    )
