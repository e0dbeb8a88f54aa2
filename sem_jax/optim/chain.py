"""The optimizer as a recipe: complex AdamW, its schedule, Langevin noise and the guard."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from sem_jax.config import ConfigError, OptimizerConfig, parse_factors
from sem_jax.optim.clipping import clip_by_global_norm
from sem_jax.optim.complex_adam import bias_corrected_second_moment, scale_by_complex_adam
from sem_jax.optim.conjugate import conjugate_gradients
from sem_jax.optim.finite_guard import finite_guard
from sem_jax.optim.groups import group_rates, scale_by_group
from sem_jax.optim.langevin import langevin_noise
from sem_jax.optim.muon import matrices_of_layers, scale_by_muon
from sem_jax.optim.parts import by_parts
from sem_jax.optim.schedule import warmup_cosine, warmup_stable_decay
from sem_jax.optim.weight_decay import add_weight_decay

# Without clipping nothing bounds what a second moment takes in. After a gradient of this norm √v̂ is 3e7 at first, an
# ordinary gradient moves its parameter by less than a rounding, and that lasts for thousands of steps at b2 = 0.999.
UNCLIPPED_MAX_NORM = 1e9


class LangevinAdamWState(NamedTuple):
    """State of `langevin_adamw`."""

    direction: dict[str, optax.OptState]  #: of the stages "conjugate", "clip", "muon", "adam", "decay" and "groups"
    noise: optax.OptState


def make_optimizer(
    config: OptimizerConfig, max_steps: int, seed: int, decays: Any | None = None
) -> optax.GradientTransformationExtraArgs:
    """The optimizer of a training run: `langevin_adamw` behind `finite_guard`.

    `update(grads, state, params, *, loss, step)` takes the gradients as `jax.grad` returns them, the scalar loss and
    the int32 training step, counted from 0. The caller counts the step through bad ones, and the schedule and the
    noise follow it; Adam's own count belongs to the moments and stands still in a bad step.

    Args:
      config: its hyperparameters.
      max_steps: length of the run, at which the decay of the learning rate ends.
      seed: of the Langevin noise.
      decays: tree of bools, the parameters that weight decay touches, as `ModelParts.decays` gives it; None: all.

    Returns:
      A transformation with state `FiniteGuardState(inner=LangevinAdamWState(...), ...)`.

    Raises:
      ValueError: a hyperparameter is out of its range.
    """
    return guarded(langevin_adamw(config, make_schedule(config, max_steps), seed, decays), config)


def guarded(inner: optax.GradientTransformation, config: OptimizerConfig) -> optax.GradientTransformationExtraArgs:
    """`finite_guard` as a configuration sets it: without clipping, a norm above `UNCLIPPED_MAX_NORM` is bad, too."""
    return finite_guard(
        inner,
        backoff=config.guard_backoff,
        min_scale=config.guard_min_scale,
        regrow_steps=config.guard_regrow_steps,
        max_norm=math.inf if config.clip_norm else UNCLIPPED_MAX_NORM,
        spike_zscore=config.spike_zscore,
        spike_window=config.spike_window,
        spike_patience=config.spike_patience,
    )


def make_schedule(config: OptimizerConfig, max_steps: int) -> optax.Schedule:
    """The learning rate before the guard's scale and the groups' factors, a function of the training step.

    Raises:
      ValueError: the phases of the schedule do not fit into the run.
    """
    if config.schedule == "cosine":
        return warmup_cosine(config.learning_rate, config.warmup_steps, max_steps, config.lr_min_ratio)
    return warmup_stable_decay(
        config.learning_rate, config.warmup_steps, config.decay_steps, max_steps, config.lr_min_ratio
    )


def langevin_adamw(
    config: OptimizerConfig, schedule: optax.Schedule, seed: int, decays: Any | None = None
) -> optax.GradientTransformationExtraArgs:
    """AdamW (Loshchilov & Hutter, 2019, arXiv:1711.05101, algorithm 2) for complex weights, with Langevin noise.

    θ ← θ − η (m̂ / (√v̂ + eps) + λ θ) + noise, with η = schedule(step) · lr_scale (docs/mathematics.md, section 2,
    Optimizer), times the factor of the parameter's group in update and noise alike. The gradient of a frozen group
    still counts in the norm that clipping bounds. With `config.matrices = "muon"` the matrices of the layers take
    `scale_by_muon`'s direction in the place of Adam's.

    Args:
      config: its hyperparameters; the guard's and the schedule's own are not read.
      schedule: from the step to the learning rate.
      seed: of the Langevin noise.
      decays: as in `make_optimizer`; `config.decay_all` goes before it.

    Returns:
      A transformation with state `LangevinAdamWState`. Its update needs the parameters and the extra argument `step`,
      an int32 scalar, and takes `lr_scale`, a scalar that is 1 unless given.

    Raises:
      ConfigError: a hyperparameter cannot be used, or init got parameters that a path of `lr_factors` or
        `decay_factors` does not fit.
    """
    if config.thermostat == "posterior":
        raise ConfigError(
            "config.optimizer.thermostat = posterior: the number of training tokens is not known here; use what "
            "sem_jax.config.with_posterior_temperature returns"
        )
    lr_factors = parse_factors(config.lr_factors, "config.optimizer.lr_factors")
    decay_factors = parse_factors(config.decay_factors, "config.optimizer.decay_factors")
    if config.matrices == "muon" and config.temperature:
        raise ConfigError(
            "config.optimizer.matrices = muon takes no Langevin noise; set config.optimizer.temperature = 0"
        )
    direction = optax.named_chain(
        ("conjugate", conjugate_gradients()),
        ("clip", clip_by_global_norm(config.clip_norm) if config.clip_norm else optax.identity()),
        *_moments(config, decays),
        ("decay", decay := add_weight_decay(config.weight_decay, None if config.decay_all else decays, decay_factors)),
        ("groups", groups := scale_by_group(lr_factors)),
    )
    noise = langevin_noise(config.temperature, config.noise_floor, config.noise_cap, seed)

    def init_fn(params: optax.Params) -> LangevinAdamWState:
        _require_paths(params, lr_factors=groups, decay_factors=decay)
        return LangevinAdamWState(direction.init(params), noise.init(params))

    def update_fn(
        grads: optax.Updates,
        state: LangevinAdamWState,
        params: optax.Params | None = None,
        *,
        step: jax.typing.ArrayLike,
        lr_scale: jax.typing.ArrayLike = 1.0,
        **extra_args: Any,
    ) -> tuple[optax.Updates, LangevinAdamWState]:
        del extra_args
        learning_rate = schedule(step) * lr_scale
        updates, direction_state = direction.update(grads, state.direction, params)
        updates = by_parts(lambda update: jnp.asarray(-learning_rate, update.dtype) * update, updates)
        noise_state = state.noise
        if config.temperature:
            updates, noise_state = noise.update(
                updates,
                state.noise,
                params,
                second_moment=bias_corrected_second_moment(direction_state["adam"], config.b2),
                learning_rate=group_rates(lr_factors, learning_rate, updates),
                step=step,
            )
        return updates, LangevinAdamWState(direction_state, noise_state)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _moments(config: OptimizerConfig, decays: Any | None) -> list[tuple[str, optax.GradientTransformation]]:
    """The stages that turn a gradient into a direction: Adam for all parameters, or Muon and Adam for the rest."""
    adam = scale_by_complex_adam(config.b1, config.b2, config.eps)
    if config.matrices == "adam":
        return [("adam", adam)]

    def rest(params: optax.Params) -> Any:
        return jax.tree.map(lambda matrix: not matrix, matrices_of_layers(params, decays))

    muon = optax.masked(scale_by_muon(), lambda params: matrices_of_layers(params, decays))
    return [("muon", muon), ("adam", optax.masked(adam, rest))]


def _require_paths(params: optax.Params, **transforms: optax.GradientTransformation) -> None:
    for field, transform in transforms.items():
        try:
            transform.init(params)
        except ValueError as error:
            raise ConfigError(f"config.optimizer.{field}: {error}") from None
