"""The selective recurrence of the mixer: h_t = a_t·h_{t−1} + b_t with a_t = exp(−δ_t·λ + i·ω_t·φ).

Two numbers a token and group, δ and ω, make all N transitions of the group, so a is rebuilt in the backward pass
instead of being kept, and its gradient never exists by itself. With g_t the cotangent of h_t including all that it
influences later (`sem_jax.core.scan`) and q_t = g_t·a_t·h_{t−1} = g_t·(h_t − b_t), the cotangent of the exponent,

    b̄_t = g_t,    δ̄_t = −Σ_n λ_n·Re q_tn,    ω̄_t = −Σ_n φ_n·Im q_tn,
    λ̄_n = −Σ_t δ_t·Re q_tn,    φ̄_n = −Σ_t ω_t·Im q_tn.

The four sums are matrix products: with λ and φ spread over a block-diagonal [G·N, G], a few more zeros are multiplied,
but nothing is transposed, and no reduction walks through memory in strides.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array

from sem_jax.core.complex_ops import HIGHEST, expi, sum_of_products
from sem_jax.core.scan import linear_recurrence, reverse_recurrence


def transitions(dt: Array, omega: Array, decay: Array, phase: Array, starts: Array) -> Array:
    """a_t = exp(−δ_t·λ + i·ω_t·φ), and 0 where a document starts.

    Args:
      dt, omega: [S, B, G], δ and ω.
      decay, phase: [G, N], λ >= 0 and φ.
      starts: [S, B] bool.

    Returns:
      [S, B, G, N], complex.
    """
    a = jnp.exp(-dt[..., None] * decay) * expi(omega[..., None] * phase)
    return jnp.where(starts[..., None, None], 0, a)


@partial(jax.custom_vjp, nondiff_argnums=(7,))
def selective_recurrence(
    dt: Array, omega: Array, decay: Array, phase: Array, inputs: Array, h0: Array, starts: Array, method: str = "auto"
) -> Array:
    """h_t = a_t·h_{t−1} + inputs_t with the a_t of `transitions` (Gu and Dao, 2023, arXiv:2312.00752, section 3.2).

    Differentiable in reverse mode in all arguments but `starts`.

    Args:
      dt, omega: [S, B, G], δ and ω.
      decay, phase: [G, N], λ >= 0 and φ.
      inputs: [S, B, G, N], complex.
      h0: [B, G, N], complex; the state before the first step.
      starts: [S, B] bool, True where the state starts afresh.
      method: of `linear_recurrence`.

    Returns:
      [S, B, G, N].
    """
    return linear_recurrence(transitions(dt, omega, decay, phase, starts), inputs, h0, method)[0]


def _forward(dt, omega, decay, phase, inputs, h0, starts, method):
    h = selective_recurrence(dt, omega, decay, phase, inputs, h0, starts, method)
    return h, (dt, omega, decay, phase, inputs, starts, h)


def _backward(method, residuals, h_bar):
    dt, omega, decay, phase, inputs, starts, h = residuals
    a = transitions(dt, omega, decay, phase, starts)
    g = reverse_recurrence(a, h_bar, method)
    q = g * (h - inputs)
    # Behind the barrier both parts are computed once, not again by each product that reads them.
    growth, turn = (_states_together(part) for part in jax.lax.optimization_barrier((-q.real, -q.imag)))
    return (
        _sum_of_states(growth, decay),
        _sum_of_states(turn, phase),
        _sum_of_tokens(dt, growth),
        _sum_of_tokens(omega, turn),
        g,
        a[0] * g[0],
        None,
    )


selective_recurrence.defvjp(_forward, _backward)


@jax.custom_vjp
def scaled_by_group(scale: Array, x: Array) -> Array:
    """scale·x of a real scale [S, B, G] and a complex x [S, B, G, N], with the sum over N as a matrix product."""
    return scale[..., None] * x


def _scaled_backward(residuals, y_bar):
    scale, x = residuals
    overlap = _states_together((y_bar * x).real)
    return _sum_of_states(overlap, jnp.ones(x.shape[-2:], scale.dtype)), scale[..., None] * y_bar


scaled_by_group.defvjp(lambda scale, x: (scaled_by_group(scale, x), (scale, x)), _scaled_backward)


def _states_together(x: Array) -> Array:
    """[S, B, G, N] to [S, B, G·N]."""
    return x.reshape(*x.shape[:2], -1)


def _sum_of_states(x: Array, weight: Array) -> Array:
    """Σ_n weight_gn·x_tgn of x [S, B, G·N] and weight [G, N]: [S, B, G]."""
    spread = jnp.eye(weight.shape[0], dtype=weight.dtype)[:, None, :] * weight[:, :, None]
    return jnp.matmul(x, spread.reshape(-1, weight.shape[0]), precision=HIGHEST)


def _sum_of_tokens(weight: Array, x: Array) -> Array:
    """Σ_t weight_tg·x_tgn of weight [S, B, G] and x [S, B, G·N]: [G, N]."""
    groups = weight.shape[-1]
    products = sum_of_products(weight, x, HIGHEST).reshape(groups, groups, -1)
    return jnp.diagonal(products).T
