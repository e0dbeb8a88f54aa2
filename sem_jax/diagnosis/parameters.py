"""Parameters by component: size of the gradient, and of the Langevin noise against the update."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sem_jax.config import Config
from sem_jax.modules.model import SEM
from sem_jax.optim import langevin_adamw, make_schedule
from sem_jax.training.state import Params, TrainState

WHOLE = ""  # the name under which all parameters are taken together


class ParameterStats(NamedTuple):
    """The parameters of one component."""

    bad: int  # entries that are not finite
    gradient_norm: float
    noise_to_update: float  # rms of the next step's noise over that of its update without noise; NaN for 0/0


def parameter_stats(config: Config, state: TrainState, gradients: Params) -> dict[str, ParameterStats]:
    """Statistics of each component's parameters, by names such as "encoder.plan", and of all of them under `WHOLE`.

    Args:
      config: holds the optimizer's hyperparameters.
      state: parameters and moments; of a fresh state the moments after one step are those of `gradients` alone.
      gradients: of the loss, as `jax.grad` returns them.
    """
    noise, update = jax.jit(noise_and_update, static_argnums=0)(config, state, gradients)
    sums: dict[str, np.ndarray] = defaultdict(lambda: np.zeros(4))
    model = state.model.merge()
    others = map(jax.tree.leaves, jax.device_get((gradients, noise, update)))
    leaves = jax.tree_util.tree_leaves_with_path(jax.device_get(state.params))
    for (path, parameter), *vectors in zip(leaves, *others, strict=True):
        keys = [jax.tree_util.keystr((key,), simple=True) for key in path]
        entries = ~np.isfinite(parameter), *(np.square(np.abs(vector), dtype=np.float64) for vector in vectors)
        stacked = keys[0] in model.blocks
        layers = len(parameter) if stacked else 1
        rows = np.stack([entry.reshape(layers, -1).sum(axis=1) for entry in entries], axis=-1)
        for layer, row in enumerate(rows):
            sums[component_of(model, keys, layer)] += row
            sums[WHOLE] += row
    with np.errstate(invalid="ignore", divide="ignore"):
        return {
            name: ParameterStats(int(bad), float(np.sqrt(gradient)), float(np.sqrt(np.divide(noisy, quiet))))
            for name, (bad, gradient, noisy, quiet) in sums.items()
        }


def noise_and_update(config: Config, state: TrainState, gradients: Params) -> tuple[Any, Any]:
    """(noise, update without it) of the step that `gradients` would make, each a tree like the parameters.

    The optimizer itself makes the step, with and without its temperature. While the learning rate warms up, its value
    at the end of that is taken: the noise falls more slowly than the update as η falls, sqrt(2Tη) against η.
    """
    optimizer, step = config.optimizer, jnp.maximum(state.step, config.optimizer.warmup_steps)
    schedule = make_schedule(optimizer, config.training.max_steps)
    guard: Any = state.opt_state
    decays = state.model.decays()

    def update(temperature: float) -> Any:
        hyperparameters = dataclasses.replace(optimizer, temperature=temperature)
        transform = langevin_adamw(hyperparameters, schedule, config.training.seed, decays)
        return transform.update(gradients, guard.inner, state.params, step=step, lr_scale=guard.lr_scale)[0]

    quiet = update(0.0)
    return jax.tree.map(jnp.subtract, update(optimizer.temperature), quiet), quiet


def component_of(model: SEM, keys: list[str], layer: int) -> str:
    """The component that a parameter belongs to, from the keys of its path, as the modules' `PARTS` tell.

    A parameter that a block's `PARTS` do not name stands for itself.
    """
    groups = model.parts
    group, attribute = (keys[0], keys[1]) if keys[0] in groups else ("head", keys[0])
    part = next((part for part, attributes in groups[group].items() if attribute in attributes), attribute)
    return f"{group}.{layer}.{part}" if group in model.blocks else f"{group}.{part}"
