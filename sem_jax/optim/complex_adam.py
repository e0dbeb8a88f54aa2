"""Adam for complex weights: one real second moment for each complex entry."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from sem_jax.core.complex_ops import abs_sq
from sem_jax.optim.parts import join, split


def scale_by_complex_adam(b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8) -> optax.GradientTransformation:
    """Adam (Kingma & Ba, 2015, arXiv:1412.6980, algorithm 1) in which a complex entry shares one second moment.

    m = EMA(g) keeps the phase, v = EMA(|g|²) is real, and the update m̂ / (√v̂ + eps) turns with a rotation of the
    gradient's phase. `optax.scale_by_adam` computes this, too, but allocates v in the gradient's complex dtype and
    divides complex numbers by it. On a real tree the two are the same computation.

    Args:
      b1: decay of the first moment a step.
      b2: decay of the second moment a step.
      eps: added to √v̂, in units of the gradient.

    Returns:
      A transformation with state `optax.ScaleByAdamState`: `mu` of the gradient's dtype, `nu` of its real dtype.
    """

    def init_fn(params: optax.Params) -> optax.ScaleByAdamState:
        zero = jax.tree.map(jnp.zeros_like, params)
        return optax.ScaleByAdamState(jnp.zeros([], jnp.int32), zero, jax.tree.map(jnp.real, zero))

    def update_fn(
        updates: optax.Updates, state: optax.OptState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, optax.ScaleByAdamState]:
        del params
        assert isinstance(state, optax.ScaleByAdamState)
        count = optax.safe_increment(state.count)
        mu = optax.tree.update_moment(split(updates), split(state.mu), b1, 1)
        nu = optax.tree.update_moment(jax.tree.map(abs_sq, updates), state.nu, b2, 1)

        def direction(v: jax.Array, m: Any) -> Any:
            return jax.tree.map(lambda part: part / (jnp.sqrt(v) + eps), m)

        nu_hat = optax.tree.bias_correction(nu, b2, count)
        updates = jax.tree.map(direction, nu_hat, optax.tree.bias_correction(mu, b1, count))
        return join(updates), optax.ScaleByAdamState(count, join(mu), nu)

    return optax.GradientTransformation(init_fn, update_fn)


def bias_corrected_second_moment(state: optax.ScaleByAdamState, b2: float) -> optax.Updates:
    """v̂ = v / (1 − b2^count), the divisor's square in the step that led to this state.

    Args:
      state: state after at least one update; before the first one v̂ is 0/0.
      b2: the decay given to `scale_by_complex_adam`.

    Returns:
      A tree of real arrays, shaped like the parameters, in squared units of the gradient.
    """
    return optax.tree.bias_correction(state.nu, b2, state.count)
