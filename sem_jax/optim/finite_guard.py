"""The guard: a step that is not finite leaves no trace but a smaller learning rate."""

import enum
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax


class Reason(enum.IntFlag):
    """What was not finite in a bad step, in causal order: the lowest bit is the nearest to the root."""

    LOSS = 1
    GRADIENT = 2  # an entry, or the global norm of entries that are all finite
    UPDATE = 4
    PARAMETERS = 8
    MOMENTS = 16  # the state of the guarded transformation


class FiniteGuardState(NamedTuple):
    """State of `finite_guard`; every field but `inner` is a scalar."""

    inner: optax.OptState
    lr_scale: jax.Array  # float32, in [min_scale, 1]: multiplies the schedule
    skipped: jax.Array  # int32, bad steps so far
    consecutive: jax.Array  # int32, bad steps in a row up to the last one; 0 says that the last step was good
    clean: jax.Array  # int32, good steps since the last bad one
    reason: jax.Array  # int32, `Reason` of the last bad step; 0 before the first


def finite_guard(
    inner: optax.GradientTransformation, backoff: float = 0.5, min_scale: float = 1e-3, regrow_steps: int = 200
) -> optax.GradientTransformationExtraArgs:
    """Skips a step unless loss, gradients, update, new parameters and new inner state are all finite.

    In a bad step the update is exactly zero and the inner state is unchanged to the bit, so that parameters and moments
    follow the trajectory that never saw it; the learning-rate scale is multiplied by `backoff`. After every
    `regrow_steps` good steps in a row it doubles, up to 1. A gradient is bad, too, when its global norm overflows
    although each entry is finite: clipping by it would silently return zero.

    The scale reaches the inner transformation as the extra argument `lr_scale`, and only that makes it act: an inner
    transformation without this argument is protected but not slowed. Counters of the inner state do not advance in a
    bad step. A schedule should therefore not count there, but follow an extra argument that the caller counts.

    Everything stays on the device. A caller ends a hopeless run by reading `consecutive`, late enough not to wait.

    Args:
      inner: transformation whose proposal is judged.
      backoff: factor on the scale in a bad step, in (0, 1).
      min_scale: the scale never falls below it, in (0, 1].
      regrow_steps: good steps in a row after which the scale doubles.

    Returns:
      A transformation with state `FiniteGuardState`. Its update needs the parameters and the extra argument `loss`,
      an array of any shape; further extra arguments go to `inner`.

    Raises:
      ValueError: an argument is out of its range, or the update is called without parameters.
    """
    if not (0 < backoff < 1 and 0 < min_scale <= 1 and regrow_steps >= 1):
        raise ValueError(
            f"need 0 < backoff < 1, 0 < min_scale <= 1 and regrow_steps >= 1, "
            f"got backoff = {backoff}, min_scale = {min_scale}, regrow_steps = {regrow_steps}"
        )
    inner = optax.with_extra_args_support(inner)

    def init_fn(params: optax.Params) -> FiniteGuardState:
        zero = jnp.zeros([], jnp.int32)
        return FiniteGuardState(inner.init(params), jnp.ones([], jnp.float32), zero, zero, zero, zero)

    def update_fn(
        updates: optax.Updates,
        state: FiniteGuardState,
        params: optax.Params | None = None,
        *,
        loss: jax.typing.ArrayLike,
        **extra_args: Any,
    ) -> tuple[optax.Updates, FiniteGuardState]:
        if params is None:
            raise ValueError("finite_guard judges the new parameters: call update with params")
        proposal, moments = inner.update(updates, state.inner, params, lr_scale=state.lr_scale, **extra_args)
        reason = _judge(loss, updates, params, proposal, moments)
        good = reason == 0
        # A select, because zero times NaN is NaN.
        accepted = jax.tree.map(lambda update: jnp.where(good, update, jnp.zeros_like(update)), proposal)
        kept = jax.tree.map(lambda new, old: jnp.where(good, new, old), moments, state.inner)
        clean = jnp.where(good, state.clean + 1, 0)
        regrown = jnp.where(clean % regrow_steps == 0, jnp.minimum(2 * state.lr_scale, 1), state.lr_scale)
        backed_off = jnp.maximum(backoff * state.lr_scale, min_scale)
        return accepted, FiniteGuardState(
            inner=kept,
            lr_scale=jnp.where(good, regrown, backed_off),
            skipped=state.skipped + jnp.where(good, 0, 1),
            consecutive=jnp.where(good, 0, state.consecutive + 1),
            clean=clean,
            reason=jnp.where(good, state.reason, reason),
        )

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _judge(loss: Any, grads: Any, params: Any, proposal: Any, moments: Any) -> jax.Array:
    """`Reason` of this step as an int32 scalar; 0 if all is finite."""
    new_params = optax.apply_updates(params, proposal)
    by_leaf = [
        _flag(Reason.LOSS, loss),
        _flag(Reason.GRADIENT, optax.tree.norm(grads)),
        *jax.tree.leaves(jax.tree.map(_judge_update, proposal, new_params)),
        *(_flag(Reason.MOMENTS, leaf) for leaf in jax.tree.leaves(moments)),
    ]
    # As bytes up to here: from int32 leaves XLA inlines this reduction into the kernel of each leaf that the result
    # selects, and compile time grows with the square of their number.
    return _union(jnp.stack(by_leaf).astype(jnp.int32))


def _judge_update(update: jax.Array, new_param: jax.Array) -> jax.Array:
    # One pass over the leaf: every further one may compute the update once more.
    return _union(_flags(Reason.UPDATE, update) | _flags(Reason.PARAMETERS, new_param))


def _flag(reason: Reason, array: jax.typing.ArrayLike) -> jax.Array:
    return _union(_flags(reason, array))


def _flags(reason: Reason, array: jax.typing.ArrayLike) -> jax.Array:
    return jnp.where(jnp.isfinite(array), jnp.uint8(0), jnp.uint8(reason))


def _union(flags: jax.Array) -> jax.Array:
    return jax.lax.reduce_or(flags, axes=tuple(range(flags.ndim)))
