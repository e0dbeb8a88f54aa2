"""The diagonal linear recurrence h_t = a_t·h_{t−1} + b_t: two evaluations, one signature, one gradient rule.

Time is the leading axis, as in `jax.lax.scan`; every other axis is independent. All forms take a carry in and hand a
carry out, so that one long sequence, two halves, or single decoded tokens give the same answer.

Gradient. With g_t the cotangent of h_t including all it influences later,

    g_t = h̄_t + a_{t+1}·g_{t+1},    b̄_t = g_t,    ā_t = g_t·h_{t−1},    h̄_0 = a_1·g_1:

a recurrence of the same kind, backwards in time, evaluated by the same method. JAX's complex cotangents are
transposes, so a enters as it is; a (re, im) pair of real arrays would need conj(a).
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array

METHODS = ("sequential", "associative")


def default_method() -> str:
    """The fastest form on the present backend.

    On CPU `lax.scan` has no launch cost and does a third of the work of a tree; on GPU and TPU one launch a time step
    would dominate.
    """
    return "sequential" if jax.default_backend() == "cpu" else "associative"


def linear_recurrence(a: Array, b: Array, h0: Array, method: str = "auto") -> tuple[Array, Array]:
    """h_t = a_t·h_{t−1} + b_t for t = 1..S.

    Source: Blelloch (1990), "Prefix sums and their applications", section 1.4; used for state space models by Smith et
    al. (2023, S5). Differentiable in a, b and h0 in reverse mode.

    Args:
      a: [S, ...], real or complex.
      b: [S, ...], same shape and dtype as a.
      h0: [...], the state before the first step, of the same dtype.
      method: "sequential", "associative", or "auto" (by backend).

    Returns:
      (h, h_last): [S, ...] and [...].

    Raises:
      ValueError: unknown method, or shapes or dtypes that do not agree.
    """
    a, b, h0 = map(jnp.asarray, (a, b, h0))
    method = default_method() if method == "auto" else method
    if method not in METHODS:
        raise ValueError(f"scan method {method!r} is not one of {', '.join(METHODS)}, auto")
    if a.shape != b.shape or a.shape[1:] != h0.shape or not a.dtype == b.dtype == h0.dtype:
        raise ValueError(
            "a, b [S, ...] and h0 [...] must agree in shape and dtype, got "
            f"{a.dtype}{a.shape}, {b.dtype}{b.shape}, {h0.dtype}{h0.shape}"
        )
    if a.shape[0] == 0:
        return b, h0
    h = _recurrence(a, b, h0, method)
    return h, h[-1]


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def _recurrence(a: Array, b: Array, h0: Array, method: str) -> Array:
    return _EVALUATE[method](a, b, h0)


def _forward(a: Array, b: Array, h0: Array, method: str):
    h = _recurrence(a, b, h0, method)
    return h, (a, h0, h)


def _backward(method: str, residuals, h_bar: Array):
    a, h0, h = residuals
    g = reverse_recurrence(a, h_bar, method)
    h_previous = jnp.concatenate([h0[None], h[:-1]])
    return g * h_previous, g, a[0] * g[0]


_recurrence.defvjp(_forward, _backward)


def reverse_recurrence(a: Array, x: Array, method: str = "auto") -> Array:
    """g_t = x_t + a_{t+1}·g_{t+1}, from the end, where nothing follows: what turns cotangents of h into those of b.

    Args:
      a, x: [S, ...], of the same dtype; a_1 is not used.
      method: as in `linear_recurrence`.

    Returns:
      [S, ...].
    """
    method = default_method() if method == "auto" else method
    if method == "sequential":
        return _sequential_reverse(a, x)
    a_next = jnp.concatenate([a[1:], jnp.zeros_like(a[:1])])
    return _recurrence(a_next[::-1], x[::-1], jnp.zeros_like(x[0]), method)[::-1]


def _sequential(a: Array, b: Array, h0: Array) -> Array:
    def step(h, inputs):
        a_t, b_t = inputs
        h = a_t * h + b_t
        return h, h

    return jax.lax.scan(step, h0, (a, b))[1]


def _sequential_reverse(a: Array, x: Array) -> Array:
    # Carries a_t·g_t, so that neither array is shifted or reversed in memory.
    def step(later, inputs):
        a_t, x_t = inputs
        g = x_t + later
        return a_t * g, g

    return jax.lax.scan(step, jnp.zeros_like(x[0]), (a, x), reverse=True)[1]


def _combine(first, second):
    """Composition of the maps h -> a·h + b; associative, with identity (1, 0)."""
    a1, b1 = first
    a2, b2 = second
    return a1 * a2, a2 * b1 + b2


def _associative(a: Array, b: Array, h0: Array) -> Array:
    b = b.at[0].add(a[0] * h0)
    return jax.lax.associative_scan(_combine, (a, b))[1]


_EVALUATE = {"sequential": _sequential, "associative": _associative}


def clamped_recurrence(
    a: Array, b: Array, h0: Array, position: Array, interval: int, bound: float = 100.0
) -> tuple[Array, Array]:
    """The recurrence of the PyTorch original, which clamps the state after every `interval`-th position.

    h ← h·min(r, bound)/r with r = sqrt(|h|² + 1e-8), elementwise; the clamped state is emitted and carried
    (docs/mathematics.md, section 2, Mixer 4). The clamp is not linear, so only the sequential form exists; autodiff
    goes through it.

    Args:
      a, b: [S, B, ...], complex.
      h0: [B, ...].
      position: [S, B] int, zero-based position of each step in its document.
      interval: clamp where (position + 1) is a multiple of it.
      bound: largest modulus kept.

    Returns:
      (h, h_last): [S, B, ...] and [B, ...].
    """

    def step(h, inputs):
        a_t, b_t, position_t = inputs
        h = a_t * h + b_t
        r = jnp.sqrt(jnp.square(h.real) + jnp.square(h.imag) + 1e-8)
        due = ((position_t + 1) % interval == 0).reshape(-1, *[1] * (h.ndim - 1))
        h = jnp.where(due, h * (jnp.minimum(r, bound) / r), h)
        return h, h

    h_last, h = jax.lax.scan(step, h0, (a, b, position))
    return h, h_last
