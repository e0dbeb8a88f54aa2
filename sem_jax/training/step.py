"""One training step and one evaluation step, each one compiled function of (state, batch)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from sem_jax.config import Config, TrainingConfig
from sem_jax.core.devices import gathered, in_chunks, num_devices, on_each_copy
from sem_jax.data import Batch
from sem_jax.modules.blocks import BLOCKS
from sem_jax.modules.model import ForwardStats, ModelParts, abstract_model
from sem_jax.modules.probe import Observer
from sem_jax.modules.propagator import PropagatorStats
from sem_jax.optim import global_norm, make_schedule
from sem_jax.training.loss import LossSums, batch_loss, mean_divergence
from sem_jax.training.mesh import make_layout
from sem_jax.training.state import Params, TrainState, abstract_state, optimizer_of
from sem_jax.training.waves import WaveObserver, WaveStats


class StepMetrics(NamedTuple):
    """What a training step reports; scalars unless said otherwise."""

    loss: Array  # what is minimised
    nll: Array  # nats a target token
    lr: Array  # after the guard's scale
    lr_scale: Array
    grad_norm: Array  # before clipping
    skipped: Array  # bad steps so far
    consecutive: Array  # bad steps in a row up to this one
    reason: Array  # `sem_jax.optim.Reason` of the last bad step
    leaf: Array  # where it was: an index into `sem_jax.optim.leaf_names`, or -1
    propagators: PropagatorStats  # each [L], the worst of the batch
    distill: Array | None  # the part of the loss that α multiplies, None where there is no teacher


class EvalMetrics(NamedTuple):
    """What one evaluation batch reports."""

    sums: LossSums
    propagators: PropagatorStats  # each [L]
    waves: dict[str, WaveStats]  # by kind of block, each [L]


def model_loss(
    config: Config,
    parts: ModelParts,
    batch: Batch,
    teacher: ModelParts | None = None,
    observer: Observer | None = None,
) -> tuple[LossSums, ForwardStats]:
    """Sums of the loss over a batch, and what the forward pass reports."""
    tokens, resets, weights = map(jnp.asarray, batch)
    sums, stats, _ = batch_loss(
        _whole_but_layers(parts).merge(),
        tokens[:, :-1],
        tokens[:, 1:],
        resets[:, :-1],
        weights,
        config.optimizer.unitary_lambda,
        None if teacher is None else _whole_but_layers(teacher).merge(),
        config.training.distill_temperature,
        observer,
    )
    return sums, stats


def _whole_but_layers(parts: ModelParts) -> ModelParts:
    """The model with all weights gathered that no layer owns; the pass gathers those one layer at a time."""
    params = {name: group if name in BLOCKS else gathered(group) for name, group in parts.params.items()}
    return parts.replace(params=params)


def _objective(config: Config, sums: LossSums, weight: Array) -> tuple[Array, Array | None]:
    """(what is minimised, its part from the teacher); linear in the sums, so micro-batches add up."""
    hard = sums.loss / weight
    if sums.divergence is None:
        return hard, None
    training = config.training
    soft = mean_divergence(sums.divergence, weight, training.global_batch, config.model.likelihood)
    return (1 - training.distill_weight) * hard + training.distill_weight * soft, soft


TrainStep = Callable[[TrainState, Batch], tuple[TrainState, StepMetrics]]


def make_train_step(config: Config, optimizer: optax.GradientTransformationExtraArgs | None = None) -> TrainStep:
    """The compiled step (state, batch) -> (state, metrics) on `config.mesh`; the state's buffers are donated.

    A batch of [global_batch, ...] is worked through in micro-batches; their gradients add up to that of the whole.
    Where `training.distill_weight` is not 0, the parameters' average before the step is the teacher of the step.

    Args:
      config: the experiment.
      optimizer: with state and arguments of the one that `optimizer_of` returns, which is the default.

    Raises:
      ConfigError: the mesh fits neither devices nor batches.
    """
    layout = make_layout(config)
    schedule = make_schedule(config.optimizer, config.training.max_steps)

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, StepMetrics]:
        with jax.sharding.use_abstract_mesh(layout.mesh.abstract_mesh):
            grads, sums, propagators = _accumulate(config, state, batch)
        loss, distill = _objective(config, sums, sums.weight)
        guard = state.opt_state
        transform = optimizer or optimizer_of(config, state.model)
        updates, opt_state = transform.update(grads, guard, state.params, loss=loss, step=state.step)
        params = optax.apply_updates(state.params, updates)
        new_state = state.replace(
            step=state.step + 1,
            params=params,
            opt_state=opt_state,
            ema=_update_ema(config, state, params, opt_state.consecutive == 0),
        )
        metrics = StepMetrics(
            loss=loss,
            nll=sums.nll / sums.weight,
            lr=schedule(state.step) * guard.lr_scale,
            lr_scale=guard.lr_scale,
            grad_norm=global_norm(grads),
            skipped=opt_state.skipped,
            consecutive=opt_state.consecutive,
            reason=opt_state.reason,
            leaf=opt_state.leaf,
            propagators=propagators,
            distill=distill,
        )
        return new_state, metrics

    state = layout.of_state(abstract_state(config))
    return jax.jit(step, in_shardings=(state, layout.rows), out_shardings=(state, layout.replicated), donate_argnums=0)


def _accumulate(config: Config, state: TrainState, batch: Batch) -> tuple[Params, LossSums, PropagatorStats]:
    """Gradient of the mean loss over the whole batch, sums of the loss, and statistics of the worst micro-batch."""
    total_weight = jnp.maximum(jnp.sum(batch.weights), 1)
    teacher = state.evaluated if config.training.distill_weight else None

    def micro_loss(params: Params, weights: Any, micro: Batch):
        model, teacher, total_weight = weights
        sums, stats = model_loss(config, model.replace(params=params), micro, teacher)
        return _objective(config, sums, total_weight)[0], (sums, propagator_stats(stats))

    def gradient(weights: Any, batch: Batch) -> tuple[tuple[Params, LossSums], PropagatorStats]:
        """Of the rows of one copy of the state, or of all."""
        params = weights[0].params
        of_micro = jax.grad(micro_loss, has_aux=True)
        num_micro = config.training.global_batch // config.training.micro_batch
        if num_micro == 1:
            grads, (sums, stats) = of_micro(params, weights, batch)
            return (grads, sums), stats

        def add(carry, micro: Batch):
            grads, (sums, stats) = of_micro(params, weights, micro)
            return jax.tree.map(jnp.add, carry, (grads, sums)), stats

        micro_batches = jax.tree.map(lambda x: in_chunks(x, len(x) // num_micro // num_devices()), batch)
        zero = jnp.zeros(())
        start = (jax.tree.map(jnp.zeros_like, params), LossSums(zero, zero, zero, None if teacher is None else zero))
        total, stats = jax.lax.scan(add, start, micro_batches)
        return total, jax.tree.map(lambda x: jnp.max(x, axis=0), stats)

    (grads, sums), stats = on_each_copy(gradient)((state.model, teacher, total_weight), batch)
    return grads, sums._replace(weight=total_weight), stats


def propagator_stats(stats: ForwardStats) -> PropagatorStats:
    """What the propagators of a pass report, each [L]; [0] for a model without any."""
    empty = jnp.zeros(0)
    return stats.blocks.get("propagators", PropagatorStats(empty, empty.astype(jnp.int32), empty, empty))


def ema_rate(config: TrainingConfig, step: Array | int) -> Array | float:
    """1 − decay of the parameters' average at a step, counted from 0: the share of the new parameters in it.

    The decay goes linearly from `ema_decay_start` to `ema_decay` in the first `ema_decay_steps` steps. The rate is what
    is interpolated, since 1 − decay would lose its digits in float32.
    """
    final = 1 - config.ema_decay
    if not config.ema_decay_steps:
        return final
    remaining = jnp.maximum(config.ema_decay_steps - step, 0) / config.ema_decay_steps  # exactly 0 in the end
    return final + (config.ema_decay - config.ema_decay_start) * remaining


def _update_ema(config: Config, state: TrainState, params: Params, good: Array) -> Params | None:
    if state.ema is None:
        return None
    rate = jnp.asarray(ema_rate(config.training, state.step))

    def average(old: Array, new: Array) -> Array:
        # A select, because a rate of zero would let a damaged parameter in.
        return jnp.where(good, old + rate.astype(old.real.dtype) * (new - old), old)

    return jax.tree.map(average, state.ema, params)


def make_eval_step(config: Config) -> Callable[[ModelParts, Batch], EvalMetrics]:
    """The compiled function (model, batch) -> metrics on `config.mesh`; raises as `make_train_step` does."""

    layout = make_layout(config)

    def step(parts: ModelParts, batch: Batch) -> EvalMetrics:
        with jax.sharding.use_abstract_mesh(layout.mesh.abstract_mesh):
            sums, stats = model_loss(config, parts, batch, observer=WaveObserver())
        return EvalMetrics(sums, propagator_stats(stats), {kind: stats.seen[kind] for kind in stats.blocks})

    parts = layout.of_state(abstract_model(config.model))
    return jax.jit(step, in_shardings=(parts, layout.rows), out_shardings=layout.replicated)
