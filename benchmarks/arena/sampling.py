"""Sampling: whether Langevin noise earns anything, in nats and in how well the model knows what it does not know.

Each run has one schedule, warm-up and plateau. From the middle on a snapshot is taken every so many steps: their mean
probability is the Monte Carlo estimate of the posterior's prediction (Welling and Teh, 2011, ICML), with noise of
temperature 1/N; their mean weights are what averaging alone would give (Izmailov et al., 2018, arXiv:1803.05407). One
more run without noise ends its schedule with a decay: the set of weights that a user would take instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from arena.campaign import Cell, Record, markdown, mean_and_spread
from arena.language import LAYERS, LENGTH, dataset
from arena.rivals import RIVALS, installed
from arena.trials import Budget, configure
from sem_jax.config import Config, with_posterior_temperature
from sem_jax.data import Batch
from sem_jax.modules.model import ModelParts
from sem_jax.training.host import single_threaded_lapack
from sem_jax.training.state import init_state
from sem_jax.training.step import make_train_step

BUDGET = Budget(parameters=200_000, vocabulary=65, steps=1000, batch=12)
RIVAL = "sem_spinor"
RATE = 4e-3  # of Adam, for Muon takes no noise
SAMPLES = 20
RUNS = {"decay": "no noise, decayed", "0": "no noise", "1/N": "T = 1/N", "1e-5": "T = 1e-5", "1e-4": "T = 1e-4"}
BINS = 15


def campaign(record: Record, seeds: int, budget: Budget = BUDGET, path: str = "") -> None:
    """Seed after seed, on the text file at `path`."""
    for seed in range(seeds):
        for run in RUNS:
            record.answers([{"run": run, "seed": seed}], partial(measure, budget, path))


def configuration(budget: Budget, path: str, run: str) -> Config:
    """The configuration of a run by its name."""
    config = configure(RIVAL, budget, LAYERS, RATE)
    optimizer = replace(config.optimizer, matrices="adam")
    if run == "decay":
        return replace(config, optimizer=optimizer)
    optimizer = replace(optimizer, decay_steps=0)
    if run != "1/N":
        return replace(config, optimizer=replace(optimizer, temperature=float(run)))
    tokens = dataset(path, 0, budget.batch, LENGTH).train_tokens
    return with_posterior_temperature(replace(config, optimizer=replace(optimizer, thermostat="posterior")), tokens)


def measure(budget: Budget, path: str, asked: list[Cell]) -> list[Cell]:
    """Nats and calibration of one run: of its last weights, of its snapshots' predictions, of their mean weights."""
    return [_measure(budget, path, each["run"], each["seed"]) for each in asked]


def _measure(budget: Budget, path: str, run: str, seed: int) -> Cell:
    config, data = configuration(budget, path, run), dataset(path, seed, budget.batch, LENGTH)
    config = replace(config, training=replace(config.training, seed=seed))
    snapshots, every = [], budget.steps // 2 // SAMPLES
    with single_threaded_lapack(), installed(RIVALS[RIVAL]):
        step, state = make_train_step(config), init_state(config)
        for number in range(budget.steps):
            state, metrics = step(state, data.train.batch(number))
            taken = number + 1 - budget.steps // 2
            if taken > 0 and taken % every == 0:
                snapshots.append(jax.tree.map(np.asarray, state.model))
        held_out = list(data.validation.evaluation_batches(30))
        last, together = (predicted(models, held_out) for models in (snapshots[-1:], snapshots))
        mean = predicted([jax.tree.map(lambda *x: np.mean(x, axis=0).astype(x[0].dtype), *snapshots)], held_out)
    targets = np.concatenate([batch.tokens[:, 1:] for batch in held_out])
    cell = {"temperature": config.optimizer.temperature, "skipped": int(metrics.skipped)}
    for name, probabilities in (("last", last), ("together", together), ("mean", mean)):
        cell[f"nats_{name}"] = round(nats(probabilities, targets), 4)
        cell[f"ece_{name}"] = round(calibration_error(probabilities, targets), 4)
    return cell


def predicted(models: Sequence[ModelParts], batches: Sequence[Batch]) -> np.ndarray:
    """The mean over the models of P(next token), [rows, S, V]."""
    inputs = [jnp.asarray(batch.tokens[:, :-1]) for batch in batches]
    return np.mean([np.concatenate([_probabilities(model, tokens) for tokens in inputs]) for model in models], axis=0)


@jax.jit
def _probabilities(parts: ModelParts, tokens: Array) -> Array:
    model = parts.merge()
    return jnp.exp(model.readout.log_probs(model(tokens)[0]))


def nats(probabilities: np.ndarray, targets: np.ndarray) -> float:
    """Mean −log P(target) of P [..., V] and targets [...]."""
    return float(-np.mean(np.log(np.take_along_axis(probabilities, targets[..., None], axis=-1))))


def calibration_error(probabilities: np.ndarray, targets: np.ndarray) -> float:
    """Expected calibration error: |right − sure| of the likeliest token, over bins of how sure the model is.

    Guo et al. (2017), arXiv:1706.04599, equation 5, with 15 bins of equal width.
    """
    sure, right = probabilities.max(axis=-1).ravel(), (probabilities.argmax(axis=-1) == targets).ravel()
    bins = np.minimum((sure * BINS).astype(int), BINS - 1)
    gaps = np.bincount(bins, weights=right - sure, minlength=BINS)
    return float(np.sum(np.abs(gaps)) / len(sure))


def tables(record: Record) -> str:
    """The table of docs/arena.md, from the cells alone."""
    rows = []
    for run, title in RUNS.items():
        cells = record.cells(run=run)
        row = [
            mean_and_spread([cell[f"{what}_{of}"] for cell in cells], 4)
            for of in ("last", "together", "mean")
            for what in ("nats", "ece")
        ]
        rows.append([title, *row])
    of = ("last weights", "20 samples", "mean weights")
    return markdown(["run", *(f"{name}, {what}" for name in of for what in ("nats", "ECE"))], rows)
