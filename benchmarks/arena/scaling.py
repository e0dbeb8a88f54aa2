"""Scaling: bytes of the Python standard library, 20 of them a parameter (Hoffmann et al., 2022, arXiv:2203.15556)."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import NamedTuple

import numpy as np
from scipy.optimize import curve_fit

from arena.campaign import RATE_HEADING, Cell, Grid, Record, judged, markdown, mean_and_spread, rate_row, tuned
from arena.library import measure_on, standard_library
from arena.rivals import RIVALS
from arena.trials import Budget
from sem_jax.data import Dataset

LAYERS = {25_000: 2, 50_000: 2, 100_000: 3, 200_000: 3, 400_000: 4}  # by parameters; the last reads the library once
TUNED = 100_000  # the largest size whose learning rate is tuned; larger ones take that of this size
TOKENS_A_PARAMETER, LENGTH = 20, 128
RIVAL_NAMES = ("sem_mamba3", "gpt")
FIT = ("floor", "c", "α", "furthest off")  # what a table says of the power law


def at(size: int, budget: Budget) -> Budget:
    """The budget of a model of so many parameters."""
    return replace(budget, parameters=size, steps=TOKENS_A_PARAMETER * size // (budget.batch * LENGTH))


BUDGET = at(max(LAYERS), Budget(parameters=0, vocabulary=261, steps=0, batch=8))


def campaign(record: Record, seeds: int, budget: Budget = BUDGET) -> None:
    """Size after size of each rival; where the rate is not tuned, one seed."""
    for size in LAYERS:
        for name in RIVAL_NAMES:
            grid, measure_size = grid_of(size), partial(measure, at(size, budget))
            asked = [{"task": grid.task, "layers": grid.layers, "seed": seed} for seed in range(seeds)]
            if size <= TUNED:
                tuned(record, measure_size, grid, name, asked)
            else:
                (rate,) = {cell["rate"] for cell in sized(record, name, TUNED)}
                record.answers([{"rival": name, **asked[0], "rate": rate}], measure_size)


def grid_of(size: int) -> Grid:
    """How the learning rate of a size is chosen."""
    return Grid(str(size), LAYERS[size])


def sized(record: Record, name: str, size: int) -> list[Cell]:
    """The cells of a rival and size that count."""
    return judged(record, rival=name, task=grid_of(size).task)


def measure(budget: Budget, asked: list[Cell]) -> list[Cell]:
    """Trials of one rival and size: each nats a byte of held-out files."""
    return measure_on(dataset, budget, asked)


def dataset(seed: int, batch: int) -> Dataset:
    """The library by bytes."""
    return standard_library("byte", LENGTH, seed, batch)


def points(record: Record, name: str) -> tuple[list[float], list[float]]:
    """(parameters, nats a byte, the mean over its seeds) of each size of a rival that was measured."""
    found = [cells for size in LAYERS if (cells := sized(record, name, size))]
    means = [float(np.mean([cell["nats"] for cell in cells])) for cells in found]
    return [cells[0]["parameters"] for cells in found], means


class PowerLaw(NamedTuple):
    """nats = floor + c·parameters^(−α): what no size can learn, and how fast the rest is learned."""

    floor: float
    constant: float
    exponent: float
    floor_error: float  # standard errors
    exponent_error: float

    def nats(self, sizes: np.ndarray) -> np.ndarray:
        """What it says of models with so many parameters."""
        return self.floor + self.constant * sizes**-self.exponent


def power_law(sizes: list[float], nats: list[float]) -> PowerLaw:
    """The law of Hoffmann et al. (2022), section 3.3, where the tokens grow with the parameters.

    Least squares of log nats, so that all sizes count alike. Three numbers go through three points, so at least four
    sizes are needed.
    """

    def log_nats(sizes: np.ndarray, floor: float, log_constant: float, exponent: float) -> np.ndarray:
        return np.log(floor + np.exp(log_constant - exponent * np.log(sizes)))

    start = (min(nats) / 2, np.log(max(nats)) + 0.4 * np.log(min(sizes)), 0.4)
    found, covariance = curve_fit(log_nats, np.asarray(sizes), np.log(nats), start)
    floor, log_constant, exponent = map(float, found)
    errors = np.sqrt(np.diag(covariance))
    return PowerLaw(floor, float(np.exp(log_constant)), exponent, float(errors[0]), float(errors[2]))


def fit(sizes: list[float], nats: list[float]) -> list[str]:
    """Floor, c and α of the power law, and how far the point lies off it that lies furthest."""
    if len(sizes) < 4:
        return ["–"] * len(FIT)
    law = power_law(sizes, nats)
    return [
        f"{law.floor:.2f} ± {law.floor_error:.2f}",
        f"{law.constant:.0f}",
        f"{law.exponent:.2f} ± {law.exponent_error:.2f}",
        f"{np.max(np.abs(law.nats(np.asarray(sizes)) - nats)):.3f}",
    ]


def at_equal_parameters(record: Record, name: str) -> list[str]:
    """Nats of another rival at the first one's parameters of each size, on lines of logarithms between its points."""
    (wanted, _), (sizes, nats) = points(record, RIVAL_NAMES[0]), points(record, name)
    if not sizes:
        return ["–"] * len(LAYERS)
    between = np.interp(np.log(wanted), np.log(sizes), np.log(nats), left=np.nan, right=np.nan)
    values = ["–" if np.isnan(each) else f"{np.exp(each):.4f}" for each in between]
    return values + ["–"] * (len(LAYERS) - len(values))


def tables(record: Record) -> str:
    """The tables of docs/arena.md, from the cells alone."""
    losses, rates = [], []
    for name in RIVAL_NAMES:
        means = [mean_and_spread([cell["nats"] for cell in sized(record, name, size)], 4) for size in LAYERS]
        losses.append([RIVALS[name].title, *means, *fit(*points(record, name))])
        measured = [size for size in LAYERS if sized(record, name, size)]
        rates += [[f"{RIVALS[name].title}, {size:,}", *rate_row(record, name, grid_of(size))] for size in measured]
    for name in RIVAL_NAMES[1:]:
        title = f"{RIVALS[name].title}, at the {RIVALS[RIVAL_NAMES[0]].title}'s parameters"
        losses.append([title, *at_equal_parameters(record, name), *fit([], [])])
    heading = ["nats a byte", *(f"{size:,}" for size in LAYERS), *FIT]
    return "\n\n".join([markdown(heading, losses), markdown(RATE_HEADING, rates)])
