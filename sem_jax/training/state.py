"""The state of a run: one pytree, all that a checkpoint holds."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from sem_jax.config import Config, TrainingConfig
from sem_jax.modules.model import ModelParts, abstract_model, init_model
from sem_jax.optim import make_optimizer

Params = dict[str, Any]


class TrainState(NamedTuple):
    """Everything that the next step depends on besides the configuration and the data.

    The data position is `step` itself, and random numbers are derived from (seed, step), so nothing else is saved.
    """

    step: Array  # scalar int32, steps taken, bad ones included
    params: Params
    buffers: Params  # graphs, and the population potential where there is one
    opt_state: optax.OptState  # `FiniteGuardState`
    ema: Params | None  # moving average of the parameters, None where the configuration keeps none


def init_state(config: Config) -> tuple[ModelParts, TrainState]:
    """A fresh model and the state before the first step."""
    parts = init_model(config.model, config.training.seed)
    return parts, start_state(config, parts)


def start_state(config: Config, parts: ModelParts) -> TrainState:
    """The state before the first step of a model."""
    optimizer = make_optimizer(config.optimizer, config.training.max_steps, config.training.seed)
    ema = jax.tree.map(jnp.copy, parts.params) if config.training.ema_decay else None
    opt_state = jax.jit(optimizer.init)(parts.params)
    return TrainState(jnp.zeros((), jnp.int32), parts.params, parts.buffers, opt_state, ema)


def abstract_state(config: Config) -> tuple[TrainState, Any]:
    """The state's shapes and dtypes, and the model's structure (graphdef); no array is computed."""
    parts = abstract_model(config.model)
    return jax.eval_shape(lambda parts: start_state(config, parts), parts), parts.graphdef


def batch_number(training: TrainingConfig, step: int) -> int:
    """Which training batch the step after `step` steps takes: each one once, or `overfit_batches` over and over."""
    return step % (training.overfit_batches or step + 1)


def evaluated_params(state: TrainState) -> Params:
    """The parameters that evaluation, samples and `sem_jax.load` use: the average where one is kept."""
    return state.params if state.ema is None else state.ema
