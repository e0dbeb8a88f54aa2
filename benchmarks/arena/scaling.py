"""Scaling: bytes of the Python standard library, 20 of them a parameter (Hoffmann et al., 2022, arXiv:2203.15556)."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from figures import save_curves

from arena.campaign import TUNING_SEED, Cell, Grid, Record, judged, markdown, mean_and_spread, side_by_side, tuned
from arena.rivals import RIVALS
from arena.trials import Budget, Trained, judge
from sem_jax.config import build, default
from sem_jax.data import Batch, Dataset, open_dataset

LAYERS = {25_000: 2, 50_000: 2, 100_000: 3, 200_000: 3, 400_000: 4}  # by parameters; the last reads the library once
TUNED = 100_000  # the largest size whose learning rate is tuned; larger ones take that of this size
TOKENS_A_PARAMETER, LENGTH = 20, 128
JUDGED = 100  # batches of held-out files
BUDGET = Budget(parameters=400_000, vocabulary=261, steps=7812, batch=8)
RATES = (1.3e-3, 4e-3, 1.2e-2, 3.6e-2)
RIVAL_NAMES = ("sem", "gpt")


def campaign(record: Record, seeds: int, budget: Budget = BUDGET) -> None:
    """Size after size of each rival; where the rate is not tuned, one seed."""
    for size, layers in LAYERS.items():
        for name in RIVAL_NAMES:
            task = {"task": str(size), "layers": layers}
            measure_size = partial(measure, at(size, budget))
            if size <= TUNED:
                asked = [task | {"seed": seed} for seed in range(seeds)]
                tuned(record, measure_size, Grid(RATES, str(size), layers), name, asked)
            else:
                (rate,) = {cell["rate"] for cell in judged(record, rival=name, task=str(TUNED))}
                record.answers([{"rival": name, **task, "seed": 0, "rate": rate}], measure_size)


def at(size: int, budget: Budget) -> Budget:
    """The budget of a model of so many parameters."""
    return replace(budget, parameters=size, steps=TOKENS_A_PARAMETER * size // (budget.batch * LENGTH))


def measure(budget: Budget, asked: list[Cell]) -> list[Cell]:
    """Trials of one rival and size: each nats a byte of held-out files."""

    def batches(asked: Cell) -> Callable[[int], Batch]:
        return dataset(asked["seed"], budget.batch).train.batch

    def judgement(asked: Cell, found: Trained) -> Cell:
        held_out = list(dataset(0, budget.batch).validation.evaluation_batches(JUDGED))
        nats = [judge(asked["rival"], budget, found.parts, batch)[0] for batch in held_out]
        weights = [batch.weights for batch in held_out]
        return {"steps": budget.steps, "nats": round(float(np.average(nats, weights=weights)), 4)}

    return side_by_side(budget, asked, batches, judgement)


@functools.cache
def dataset(seed: int, batch: int) -> Dataset:
    """The library by bytes; whole files are held out."""
    config = default()
    config.data.update(source="pystdlib", tokenizer="byte", packing="documents", seq_length=LENGTH)
    return open_dataset(build(config).data, seed, batch)


def points(record: Record, name: str) -> tuple[list[float], list[float]]:
    """(parameters, nats a byte, the mean over its seeds) of each size of a rival that was measured."""
    found = [cells for size in LAYERS if (cells := judged(record, rival=name, task=str(size)))]
    means = [float(np.mean([cell["nats"] for cell in cells])) for cells in found]
    return [cells[0]["parameters"] for cells in found], means


def power_law(sizes: list[float], nats: list[float]) -> tuple[float, float, float]:
    """(c, α, standard error of α) of nats = c·parameters^(−α), least squares of the logarithms."""
    (slope, shift), covariance = np.polyfit(np.log(sizes), np.log(nats), 1, cov=True)
    return float(np.exp(shift)), float(-slope), float(np.sqrt(covariance[0, 0]))


def exponent(sizes: list[float], nats: list[float]) -> str:
    """α of the power law and its standard error; two points lie on a line whatever they are, so three is the least."""
    if len(sizes) < 3:
        return "–"
    _, found, error = power_law(sizes, nats)
    return f"{found:.4f} ± {error:.4f}"


def draw(record: Record, folder: Path) -> None:
    """A picture of nats against parameters, arena_scaling.svg."""
    lines = {RIVALS[name].title: points(record, name) for name in RIVAL_NAMES}
    save_curves(str(folder / "arena_scaling.svg"), lines, "parameters", "nats a byte, held out")


def tables(record: Record) -> str:
    """The tables of docs/arena.md, from the cells alone."""
    losses, rates = [], []
    for name in RIVAL_NAMES:
        by_size = [judged(record, rival=name, task=str(size)) for size in LAYERS]
        means = [mean_and_spread([cell["nats"] for cell in cells], 4) for cells in by_size]
        losses.append([RIVALS[name].title, *means, exponent(*points(record, name))])
        for size in LAYERS:
            tuning = [record.cells(rival=name, task=str(size), rate=rate, seed=TUNING_SEED) for rate in RATES]
            found = [mean_and_spread([cell["loss"] for cell in cells], 3) for cells in tuning]
            parameters = {f"{cell['parameters']:,}" for cell in record.cells(rival=name, task=str(size))}
            if parameters:
                rates.append([f"{RIVALS[name].title}, {size:,}", *found, *parameters])
    return "\n\n".join(
        [
            markdown(["nats a byte", *(f"{size:,}" for size in LAYERS), "exponent"], losses),
            markdown(["training loss at a rate of", *map(str, RATES), "parameters"], rates),
        ]
    )
