"""The guard: a step that is not finite leaves no trace but a smaller learning rate."""

import enum
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from sem_jax.core.complex_ops import abs_sq
from sem_jax.optim.spikes import SpikeState, init_spikes, judge_spike


class Reason(enum.IntEnum):
    """What is not finite, or so large that its square is not, in a bad step.

    Where there are several causes, the largest number: it is the nearest to their root.
    """

    SPIKE = 1  #: all is finite, but loss or gradient norm are far above those of the last steps
    MOMENTS = 2  #: the state of the guarded transformation after the step
    PARAMETERS = 3  #: after the step
    UPDATE = 4
    GRADIENT = 5  #: or a global norm that overflows or exceeds `max_norm`
    LOSS = 6
    STATE = 7  #: the parameters or the inner state before the step, which no skip can mend


class FiniteGuardState(NamedTuple):
    """State of `finite_guard`; every field but `inner` and `spikes` is a scalar."""

    inner: optax.OptState
    lr_scale: jax.Array  #: float32, in [min_scale, 1]; multiplies the schedule
    skipped: jax.Array  #: int32, bad steps so far
    consecutive: jax.Array  #: int32, bad steps in a row up to the last one; 0 says that the last step was good
    clean: jax.Array  #: int32, good steps since the last bad one
    reason: jax.Array  #: int32, `Reason` of the last bad step; 0 before the first
    leaf: jax.Array  #: int32, index in `leaf_names` of the first one with this cause, -1 where it is the loss
    spikes: SpikeState | None  #: None where spikes are taken


def finite_guard(
    inner: optax.GradientTransformation,
    backoff: float = 0.5,
    min_scale: float = 1e-3,
    regrow_steps: int = 200,
    max_norm: float = float("inf"),
    spike_zscore: float = 0.0,
    spike_window: int = 100,
    spike_patience: int = 5,
) -> optax.GradientTransformationExtraArgs:
    """Skips a step unless loss, gradients, update, new parameters and new inner state are all finite, squares included.

    In a bad step the update is exactly zero and the inner state is unchanged to the bit, so that parameters and moments
    follow the trajectory that never saw it; the learning-rate scale is multiplied by `backoff`. After every
    `regrow_steps` good steps in a row it doubles, up to 1.

    A number whose square overflows (1.8e19 in float32) counts as not finite, wherever it is: neither amplitudes nor
    norms nor second moments exist for it, so that it would spoil the next step or, as a moment, freeze its parameter. A
    gradient is bad, too, when only the sum of the squares overflows: clipping by that norm would silently return zero.

    The scale reaches the inner transformation as the extra argument `lr_scale`, and only that makes it act: an inner
    transformation without this argument is protected but not slowed. Counters of the inner state do not advance in a
    bad step. A schedule should therefore not count there, but follow an extra argument that the caller counts.

    A spike, as `judge_spike` defines it, is skipped like a bad step, but changes neither the scale nor the count to its
    regrowth: it comes from the batch, not from the learning rate.

    An inner state that was damaged before the step is found where the new one depends on it, as moving averages do. One
    that begins at infinity, such as that of `optax.contrib.reduce_on_plateau`, belongs outside the guard.

    Everything stays on the device. A caller ends a hopeless run by reading `consecutive` and `reason`, late enough not
    to wait.

    Args:
      inner: transformation whose proposal is judged.
      backoff: factor on the scale in a bad step, in (0, 1).
      min_scale: the scale never falls below it, in (0, 1].
      regrow_steps: good steps in a row after which the scale doubles.
      max_norm: a gradient of a larger global norm is bad, though finite.
      spike_zscore: robust standard deviations above the median that make a spike; 0 takes every finite step.
      spike_window: steps that median and deviation are taken over.
      spike_patience: spikes in a row that are skipped.

    Returns:
      A transformation with state `FiniteGuardState`. Its update needs the parameters and the extra argument `loss`,
      an array of any shape; further extra arguments go to `inner`.

    Raises:
      ValueError: an argument is out of its range, or the update is called without parameters.
    """
    if not (0 < backoff < 1 and 0 < min_scale <= 1 and regrow_steps >= 1 and max_norm > 0):
        raise ValueError(
            f"need 0 < backoff < 1, 0 < min_scale <= 1, regrow_steps >= 1 and max_norm > 0, got backoff = {backoff}, "
            f"min_scale = {min_scale}, regrow_steps = {regrow_steps}, max_norm = {max_norm}"
        )
    if not (spike_zscore >= 0 and spike_window >= 1 and spike_patience >= 1):
        raise ValueError(
            f"need spike_zscore >= 0, spike_window >= 1 and spike_patience >= 1, got spike_zscore = {spike_zscore}, "
            f"spike_window = {spike_window}, spike_patience = {spike_patience}"
        )
    inner = optax.with_extra_args_support(inner)

    def init_fn(params: optax.Params) -> FiniteGuardState:
        zero = jnp.zeros([], jnp.int32)
        spikes = init_spikes(spike_window) if spike_zscore else None
        return FiniteGuardState(inner.init(params), jnp.ones([], jnp.float32), zero, zero, zero, zero, zero - 1, spikes)

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

        def propose() -> tuple[optax.Updates, optax.OptState]:
            return inner.update(updates, state.inner, params, lr_scale=state.lr_scale, **extra_args)

        def find_cause() -> tuple[jax.Array, jax.Array]:
            proposal, moments = propose()
            reason, leaf = _judge(loss, updates, params, proposal, state.inner, moments, max_norm)
            # Computed again, a number at the edge of overflow may be rounded to the other side of it.
            return jnp.where(reason == 0, int(Reason.MOMENTS), reason), leaf

        proposal, moments = propose()
        end = (optax.apply_updates(params, proposal), moments)
        # A sum or product with a number that is not finite is not finite either, so the end of the step is judged, and
        # only a bad step pays for the question where it began: every judgement reads all the numbers there are.
        well = _all_sound((loss, end)) & (_judge_gradients(updates, max_norm) == 0).all()
        reason, leaf = jax.lax.cond(well, lambda: (jnp.int32(0), jnp.int32(-1)), find_cause)
        finite, spikes = reason == 0, state.spikes
        if spikes is not None:
            spike, after = judge_spike(spikes, jnp.mean(loss), optax.tree.norm(updates), spike_zscore, spike_patience)
            spikes = jax.tree.map(lambda new, old: jnp.where(finite, new, old), after, spikes)
            reason = jnp.where(finite & spike, int(Reason.SPIKE), reason)
        good = reason == 0
        # A select, because zero times NaN is NaN.
        accepted = jax.tree.map(lambda update: jnp.where(good, update, jnp.zeros_like(update)), proposal)
        kept = jax.tree.map(lambda new, old: jnp.where(good, new, old), moments, state.inner)
        clean = jnp.where(good, state.clean + 1, jnp.where(finite, state.clean, 0))
        regrown = jnp.where(clean % regrow_steps == 0, jnp.minimum(2 * state.lr_scale, 1), state.lr_scale)
        backed_off = jnp.maximum(backoff * state.lr_scale, min_scale)
        return accepted, FiniteGuardState(
            inner=kept,
            lr_scale=jnp.where(good, regrown, jnp.where(finite, state.lr_scale, backed_off)),
            skipped=state.skipped + jnp.where(good, 0, 1),
            consecutive=jnp.where(good, 0, state.consecutive + 1),
            clean=clean,
            reason=jnp.where(good, state.reason, reason),
            leaf=jnp.where(good, state.leaf, leaf),
            spikes=spikes,
        )

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def leaf_names(params: optax.Params, inner_state: optax.OptState) -> list[str]:
    """What `FiniteGuardState.leaf` counts: the leaves of the parameters, then those of the inner state.

    A gradient, an update and a parameter share their name, such as "mixers/conv/weight"; one of the inner state is
    "direction/adam/nu/mixers/conv/weight". Only the structure is read, so abstract arrays will do.
    """
    leaves = jax.tree_util.tree_leaves_with_path(params) + jax.tree_util.tree_leaves_with_path(inner_state)
    return [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves]


def is_sound(array: jax.typing.ArrayLike) -> jax.Array | np.ndarray:
    """Whether an entry's square is finite, bool of the array's shape; for half precision in float32.

    Of a numpy array the answer is one, too: what lies on the host is judged there, and nothing is compiled for it.
    """
    array = array if isinstance(array, np.ndarray) else jnp.asarray(array)
    wide_type = jax.dtypes.canonicalize_dtype(jnp.promote_types(array.dtype, jnp.float32))
    if isinstance(array, np.ndarray):
        with np.errstate(over="ignore", invalid="ignore"):
            wide = array.astype(wide_type)
            return np.isfinite(np.square(wide.real) + np.square(wide.imag))
    return jnp.isfinite(abs_sq(array.astype(wide_type)))


def _all_sound(tree: Any) -> jax.Array:
    return jnp.stack([is_sound(leaf).all() for leaf in jax.tree.leaves(tree)]).all()


def _judge(
    loss: Any, grads: Any, params: Any, proposal: Any, old_moments: Any, moments: Any, max_norm: float
) -> tuple[jax.Array, jax.Array]:
    """`Reason` of this step, 0 if all is well, and the first leaf that it holds for, -1 for none; int32 scalars."""
    by_param = jax.tree.leaves(jax.tree.map(_judge_param, params, proposal))
    by_moment = jax.tree.leaves(jax.tree.map(_judge_moment, old_moments, moments))
    # As bytes up to here: from int32 leaves XLA inlines this reduction into the kernel of each leaf that the result
    # selects, and compile time grows with the square of their number.
    reasons = jnp.stack(by_param + by_moment).astype(jnp.int32)
    by_gradient = jnp.pad(_judge_gradients(grads, max_norm), (0, len(by_moment)))
    reasons = jnp.maximum(reasons, by_gradient)
    reason = jnp.maximum(reasons.max(), _worst(_reasons(Reason.LOSS, loss)).astype(jnp.int32))
    blamed = (reason != 0) & (reason != int(Reason.LOSS))
    return reason, jnp.where(blamed, jnp.argmax(reasons).astype(jnp.int32), -1)


def _judge_param(param: jax.Array, update: jax.Array) -> jax.Array:
    # One pass over the leaf: every further one may compute the update once more.
    return _worst(
        _reasons(Reason.STATE, param),
        _reasons(Reason.UPDATE, update),
        _reasons(Reason.PARAMETERS, optax.apply_updates(param, update)),
    )


def _judge_moment(old: jax.Array, new: jax.Array) -> jax.Array:
    return _worst(_reasons(Reason.STATE, old), _reasons(Reason.MOMENTS, new))


def _judge_gradients(grads: Any, max_norm: float) -> jax.Array:
    """int32 reasons by leaf; where only the sum of all squares is too large, of the leaf which adds most to it."""
    squares = jnp.stack([optax.tree.norm(leaf, squared=True) for leaf in jax.tree.leaves(grads)])
    norm = jnp.sqrt(jnp.sum(squares))
    broken = ~jnp.isfinite(squares)
    blamed = jnp.where(broken.any(), broken, squares == squares.max())
    return jnp.where(blamed & ~(norm <= min(max_norm, float(jnp.finfo(norm.dtype).max))), int(Reason.GRADIENT), 0)


def _reasons(reason: Reason, array: jax.typing.ArrayLike) -> jax.Array:
    return jnp.where(is_sound(array), jnp.uint8(0), jnp.uint8(reason))


def _worst(*reasons: jax.Array) -> jax.Array:
    # A maximum, since few backends can combine bits across devices.
    return jnp.max(functools.reduce(jnp.maximum, reasons), initial=0)
