"""Adam for complex weights: one real second moment for each complex entry."""

from typing import cast

import jax
import jax.numpy as jnp
import optax


def scale_by_complex_adam(b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8) -> optax.GradientTransformation:
    """Adam (Kingma & Ba, 2015, arXiv:1412.6980, algorithm 1) in which a complex entry shares one second moment.

    m = EMA(g) keeps the phase, v = EMA(|g|²) is real, and the update m̂ / (√v̂ + eps) turns with a rotation of the
    gradient's phase. `optax.scale_by_adam` already computes this, but allocates v in the gradient's complex dtype:
    twice the memory and five times the work. Here its second moment starts real and optax's own update, which casts to
    the dtype of the state, keeps it real. On a real tree the two are the same computation.

    Args:
      b1: decay of the first moment a step.
      b2: decay of the second moment a step.
      eps: added to √v̂, in units of the gradient.

    Returns:
      A transformation with state `optax.ScaleByAdamState`: `mu` of the gradient's dtype, `nu` of its real dtype.
    """
    adam = optax.scale_by_adam(b1, b2, eps)

    def init_fn(params: optax.Params) -> optax.ScaleByAdamState:
        state = cast(optax.ScaleByAdamState, adam.init(params))
        return state._replace(nu=jax.tree.map(jnp.real, state.nu))

    return optax.GradientTransformation(init_fn, adam.update)


def bias_corrected_second_moment(state: optax.ScaleByAdamState, b2: float) -> optax.Updates:
    """v̂ = v / (1 − b2^count), the divisor's square in the step that led to this state.

    Args:
      state: state after at least one update; before the first one v̂ is 0/0.
      b2: the decay given to `scale_by_complex_adam`.

    Returns:
      A tree of real arrays, shaped like the parameters, in squared units of the gradient.
    """
    return optax.tree.bias_correction(state.nu, b2, state.count)
