"""One trial: a rival of a given size, trained by the package's own step on batches of a task."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from arena.rivals import RIVALS, Answers, installed
from sem_jax.config import Config, build, default
from sem_jax.data import Batch
from sem_jax.modules.model import ModelParts, abstract_model, count_parameters
from sem_jax.training.host import single_threaded_lapack
from sem_jax.training.state import init_state
from sem_jax.training.step import TrainStep, make_train_step


@dataclass(frozen=True)
class Budget:
    """What all rivals of a table share."""

    parameters: int
    vocabulary: int
    steps: int
    batch: int
    tags: bool = False  # tokens are pairs, see `arena.rivals.tagged`
    weight_decay: float = 0.1


class Trained(NamedTuple):
    """What a trial leaves behind."""

    parts: ModelParts
    losses: list[float]  # nats a target in training, of each step
    seconds: float  # processor time of a step, the median: what else the machine does matters little
    skipped: int  # steps that the guard refused


@functools.cache
def configure(name: str, budget: Budget, layers: int, rate: float, dim: int = 0) -> Config:
    """The configuration of a rival at the width that comes closest to the budget's parameters, or at `dim`."""
    dim = dim or matching_dim(name, budget, layers)
    steps = budget.steps
    config = default()
    config.model.update(hidden_dim=dim, num_layers=layers, layout="interleaved", vocab_size=budget.vocabulary)
    config.model.mixer.update(num_groups=8, num_heads=4, state_dim=16)
    config.model.update_from_flattened_dict(dict(RIVALS[name].fields))
    config.optimizer.update(matrices="muon", learning_rate=rate, b2=0.99, weight_decay=budget.weight_decay)
    config.optimizer.update(warmup_steps=steps // 20, decay_steps=steps * 3 // 4, lr_min_ratio=0.03)
    config.training.update(max_steps=steps, global_batch=budget.batch, micro_batch=budget.batch)
    return build(config)


@functools.cache
def matching_dim(name: str, budget: Budget, layers: int) -> int:
    """The multiple of 8 whose parameters come closest to the budget's, by their ratio."""

    def distance(dim: int) -> float:
        return abs(math.log(parameters(name, budget, layers, dim) / budget.parameters))

    high = 16
    while parameters(name, budget, layers, high) < budget.parameters:
        high += 8
    return min(high - 8, high, key=distance)


@functools.cache
def parameters(name: str, budget: Budget, layers: int, dim: int = 0) -> int:
    """Real parameters of a rival; a complex one counts twice."""
    config = configure(name, budget, layers, 1e-3, dim)
    with _installed(name, budget):
        return count_parameters(abstract_model(config.model).params)


def train(name: str, budget: Budget, layers: int, rate: float, seed: int, batches: Callable[[int], Batch]) -> Trained:
    """Trains a rival on batch 0, 1, ... of a task."""
    config = configure(name, budget, layers, rate)
    times, losses = [], []
    with single_threaded_lapack(), _installed(name, budget):
        step = _train_step(name, budget, layers, rate)
        state = init_state(replace(config, training=replace(config.training, seed=seed)))
        for number in range(budget.steps):
            batch = batches(number)
            start = time.process_time()
            state, metrics = step(state, batch)
            losses.append(float(metrics.nll))
            times.append(time.process_time() - start)
    return Trained(state.model, losses, float(np.median(times)), int(metrics.skipped))


@functools.cache
def _train_step(name: str, budget: Budget, layers: int, rate: float) -> TrainStep:
    return make_train_step(configure(name, budget, layers, rate))


def trial_values(name: str, budget: Budget, layers: int, found: Trained) -> dict[str, Any]:
    """What every cell says of its trial."""
    return {
        "loss": round(float(np.mean(found.losses[-50:])), 4),  # nats a target, of the last 50 batches
        "step_ms": round(1e3 * found.seconds, 2),
        "skipped": found.skipped,
        "dim": matching_dim(name, budget, layers),
        "parameters": parameters(name, budget, layers),
    }


def judge(name: str, budget: Budget, parts: ModelParts, batch: Batch) -> tuple[np.ndarray, np.ndarray]:
    """(nats, whether the likeliest answer is the right one) of every target of a batch, [B, S] each."""
    with single_threaded_lapack(), _installed(name, budget):
        nats, right = _judge(parts, jnp.asarray(batch.tokens), jnp.asarray(batch.resets), budget.vocabulary)
    return np.asarray(nats), np.asarray(right)


@functools.partial(jax.jit, static_argnames="vocabulary")
def _judge(parts: ModelParts, tokens: Array, resets: Array, vocabulary: int) -> tuple[Array, Array]:
    model, targets = parts.merge(), tokens[:, 1:]
    psi, _, _ = model(tokens[:, :-1], resets=resets[:, :-1])
    likeliest = jnp.argmax(model.readout.log_probs(psi), axis=-1)
    answers = targets // vocabulary if isinstance(model.readout, Answers) else targets
    return -model.readout.target_log_prob(psi, targets)[0], likeliest == answers


def _installed(name: str, budget: Budget) -> AbstractContextManager[None]:
    return installed(RIVALS[name], budget.vocabulary if budget.tags else 0)
