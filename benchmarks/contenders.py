"""sem_jax as a contender: its training step, the step's gradient alone, its optimizer alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from shapes import random_batch
from timing import Compiled, bound, compiled

from sem_jax.config import Config
from sem_jax.data import Batch
from sem_jax.modules.model import init_model
from sem_jax.training.state import init_state, optimizer_of, start_state
from sem_jax.training.step import make_train_step, model_loss


def training_step(config: Config) -> Compiled:
    """The whole compiled step; each call takes the next."""
    state = init_state(config)
    batch = random_batch(config)
    program = compiled(make_train_step(config), state, batch)
    carried = [state]

    def step():
        carried[0], metrics = program.call(carried[0], batch)
        return metrics

    return Compiled(step, program.seconds)


def model_passes(config: Config) -> dict[str, Callable[[], Any]]:
    """Model and loss without guard and optimizer: the forward pass, and both."""
    parts = init_model(config.model, 0)
    batch = Batch(*map(jnp.asarray, random_batch(config)))

    def loss(params, parts, batch):
        sums, stats = model_loss(config, parts.replace(params=params), batch)
        return sums.loss, stats

    arguments = parts.params, parts, batch
    return {"forward": bound(loss, *arguments), "training": bound(jax.value_and_grad(loss, has_aux=True), *arguments)}


def optimizer_update(config: Config) -> Callable[[], Any]:
    """Guard and optimizer alone, on donated state as in the step."""
    parts = init_model(config.model, 0)
    optimizer = optimizer_of(config, parts)
    state = start_state(config, parts)
    grads = jax.tree.map(lambda p: jnp.full_like(p, 1e-3), state.params)

    def update(params, moments, grads, step):
        updates, moments = optimizer.update(grads, moments, params, loss=jnp.float32(1.0), step=step)
        return jax.tree.map(jnp.add, params, updates), moments

    carried = [state.params, state.opt_state]
    program = compiled(jax.jit(update, donate_argnums=(0, 1)), *carried, grads, state.step).call

    def run():
        carried[:] = program(*carried, grads, state.step)
        return carried

    return run
