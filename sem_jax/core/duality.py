"""The selective state space with an outer-product state, as a recurrence and as matrix products.

For each head with N complex states and P channels, and with u_t = δ_t·x_t,

    h_t = diag(α_t)·h_{t−1} + k_t u_tᵀ  [N, P],      α_t[n] = exp(−δ_t·λ + i·ω_t·φ_n),      y_t = h_tᵀ·conj(q_t) / N.

It is the complex form of Mamba-3 (arXiv:2603.15569): one decay a head, a rotation that depends on the token, and keys
and queries that do, too. As the decay does not depend on n, the rotation goes into queries and keys exactly. With
Λ_t = λ·Σ_{r<=t} δ_r and θ_t = φ·Σ_{r<=t} ω_r, both counted from the start of a chunk,

    q̃_t = q_t·e^{−iθ_t},   k̃_s = k_s·e^{−iθ_s},
    y_t = (1/N)·Σ_{s<=t} e^{−(Λ_t − Λ_s)} (q̃_tᴴ k̃_s) u_s  +  (1/N)·e^{−Λ_t} h_inᵀ conj(q̃_t),
    h_out = e^{−Λ_T}·diag(e^{iθ_T})·h_in + Σ_s e^{−(Λ_T − Λ_s)} diag(e^{iθ_T}) k̃_s u_sᵀ.

Every exponent is <= 0, so that nothing overflows, whatever the length of a chunk (Dao and Gu, 2024, arXiv:2405.21060,
section 6, has the real case). Between chunks `jax.lax.scan` carries h; the backward pass computes a chunk's scores
again and keeps one state a chunk, never [S, N, P].
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array

from sem_jax.core.complex_ops import HIGHEST, cos_sin, expi, stored
from sem_jax.core.scan import METHODS, linear_recurrence

CHUNK = 64


def selective_state_space(
    q: Array,
    k: Array,
    x: Array,
    dt: Array,
    omega: Array,
    decay: Array,
    phase: Array,
    h0: Array | None,
    starts: Array,
    method: str = "auto",
    chunk: int = CHUNK,
) -> tuple[Array, Array]:
    """y of the equations above, and the state after the last token.

    Args:
      q, k: [B, S, N] complex, queries and keys of all heads.
      x: [B, S, H, P] complex.
      dt, omega: [B, S, H], δ >= 0 and ω.
      decay: [H], λ >= 0.
      phase: [H, N], φ.
      h0: [B, H, N, P] complex, the state before the first token; None: zero, and a chunk is cheaper by a product.
      starts: [B, S] bool, True where a document starts: the state before it is forgotten.
      method: "chunked" (matrix products), "sequential" or "associative" (the recurrence, as in `linear_recurrence`), or
        "auto": chunked, but for one token the recurrence.
      chunk: tokens of a chunk.

    Returns:
      (y [B, S, H, P], h [B, H, N, P]).

    Raises:
      ValueError: unknown method.
    """
    if method == "auto":
        method = "sequential" if x.shape[1] == 1 else "chunked"
    if method not in (*METHODS, "chunked"):
        raise ValueError(f"scan method {method!r} is not one of {', '.join(METHODS)}, chunked, auto")
    tokens = (q, k, x, dt, omega, starts)
    length, size = x.shape[1], min(chunk, x.shape[1])
    state = jnp.zeros((len(x), *phase.shape, x.shape[-1]), x.dtype) if h0 is None else h0
    if method != "chunked":
        return _recurrent(state, tokens, decay, phase, method)

    padding = -length % size

    def in_chunks(a: Array) -> Array:
        # A padded token has δ = ω = 0: it changes no state, and what it reads is cut off.
        a = jnp.pad(a, [(0, 0), (0, padding)] + [(0, 0)] * (a.ndim - 2))
        return jnp.moveaxis(a.reshape(len(a), -1, size, *a.shape[2:]), 1, 0)

    def step(h: Array | None, tokens: tuple[Array, ...]) -> tuple[Array, Array]:
        return _one_chunk(h, tokens, decay, phase)

    inputs = tuple(map(in_chunks, tokens))
    if length <= size:
        h, y = step(h0, tuple(a[0] for a in inputs))
        return y, h
    h, y = jax.lax.scan(jax.checkpoint(step), state, inputs)
    return jnp.moveaxis(y, 0, 1).reshape(len(starts), -1, *y.shape[3:])[:, :length], h


def _one_chunk(h: Array | None, tokens: tuple[Array, ...], decay: Array, phase: Array) -> tuple[Array, Array]:
    """(state after the chunk, y [B, T, H, P]).

    Real arrays all the way: XLA:CPU vectorises their products and sums, and takes complex entries apart one by one. A
    complex vector is a row of real above a row of imaginary parts, and tokens come last: every product is one batch of
    matrices over [B, H], and the longest axis is the one that lies contiguous in memory.
    """
    q, k, x, dt, omega, starts = tokens
    total_decay = _running_sum(jnp.swapaxes(dt * decay, 1, 2))  # Λ [B, H, T]
    theta = _running_sum(jnp.swapaxes(omega, 1, 2))[:, :, None] * phase[:, :, None]
    cos, sin = stored(cos_sin, theta)  # [B, H, N, T]
    rows = stored(lambda *z: tuple(map(_rows, z)), q[:, :, None] / q.shape[-1], k[:, :, None])  # [B, 1, 2N, T]
    q, k = (_turned_back(z, cos, sin) for z in rows)  # [B, H, 2N, T]
    u = stored(lambda x, dt: _rows(x) * jnp.swapaxes(dt, -1, -2)[..., None, :], x, dt)  # [B, H, 2P, T]

    document = jnp.cumsum(starts, axis=-1)
    past = jnp.triu(document[:, :, None] == document[:, None, :])
    y = _within_chunk(q, k, u, total_decay, stored(lambda past: jnp.where(past, 0.0, -jnp.inf), past))

    # What is left of each token at the end of the chunk, if its document is still read.
    left = jnp.exp(total_decay - total_decay[..., -1:]) * (document == document[:, -1:])[:, None]
    h_out = _complex_outer(_product("bhnt,bhpt->bhnp", k, u * left[:, :, None]))
    if h is not None:
        unbroken = (document == 0)[:, None] * jnp.exp(-total_decay)
        rows = jnp.concatenate([h.real, h.imag], axis=2)
        read = _product("bhnp,bhnt->bhpt", jnp.concatenate([rows, _over_i(rows)], axis=-1), q)
        y += read * unbroken[:, :, None]
        h_out += unbroken[..., -1:, None] * h
    h_out *= jax.lax.complex(cos[..., -1], sin[..., -1])[..., None]
    return h_out, stored(lambda y: jnp.moveaxis(jax.lax.complex(*_halves(y)), -1, -3), y)


def _running_sum(a: Array) -> Array:
    """Over the last axis; XLA:CPU would fuse `jnp.cumsum` into every reader, and does not fuse a product."""
    ones = jnp.triu(jnp.ones((a.shape[-1], a.shape[-1]), a.dtype))
    return _product("bhs,st->bht", a, ones)


def _rows(z: Array) -> Array:
    """Complex [..., T, H, N] to its parts [..., H, 2N, T]."""
    return jnp.moveaxis(jnp.concatenate([z.real, z.imag], axis=-1), -3, -1)


def _halves(rows: Array) -> tuple[Array, Array]:
    """The real and the imaginary part of rows [..., 2N, T]."""
    real, imag = jnp.split(rows, 2, axis=-2)
    return real, imag


def _over_i(rows: Array) -> Array:
    """Rows [..., 2N, T] of z/i = Im z − i·Re z."""
    real, imag = _halves(rows)
    return jnp.concatenate([imag, -real], axis=-2)


def _complex_outer(products: Array) -> Array:
    """Σ_t k u from the products of the rows of k with those of u, [..., 2N, 2P]: [..., N, P]."""
    (rr, ri), (ir, ii) = (jnp.split(half, 2, axis=-1) for half in _halves(products))
    return jax.lax.complex(rr - ii, ri + ir)


def _product(subscripts: str, a: Array, b: Array) -> Array:
    return jnp.einsum(subscripts, a, b, precision=HIGHEST)


@jax.custom_vjp
def _turned_back(z: Array, cos: Array, sin: Array) -> Array:
    """Rows [B, H, 2N, T] of z·e^{−iθ}, from rows z [B, 1, 2N, T] and cos θ, sin θ [B, H, N, T]."""
    real, imag = _halves(z)
    return jnp.concatenate([real * cos + imag * sin, imag * cos - real * sin], axis=-2)


def _turned_back_forward(z: Array, cos: Array, sin: Array):
    return _turned_back(z, cos, sin), (z, cos, sin)


def _turned_back_backward(residuals, turned_bar: Array):
    z, cos, sin = residuals
    (real, imag), (real_bar, imag_bar) = _halves(z), _halves(turned_bar)
    z_bar = stored(
        lambda r, i, c, s: jnp.concatenate([r * c - i * s, r * s + i * c], axis=-2), real_bar, imag_bar, cos, sin
    )
    cos_bar = real * real_bar + imag * imag_bar
    return jnp.sum(z_bar, axis=1, keepdims=True), cos_bar, imag * real_bar - real * imag_bar


_turned_back.defvjp(_turned_back_forward, _turned_back_backward)


@jax.custom_vjp
def _within_chunk(q: Array, k: Array, u: Array, total_decay: Array, past: Array) -> Array:
    """Rows of y_t = Σ_s W_st·(q_tᴴ k_s)·u_s with W_st = exp(Λ_s − Λ_t + past_st).

    The rows of k and those of k/i stand side by side, so that one product gives Re(q̄k) above Im(q̄k), and one more takes
    both to y; so does each cotangent. As exp is its own derivative, Λ̄ needs no sums over scores, which would be sums of
    Y_t·y_t over s and of u_s·ū_s over t, with Y the cotangent of y: Λ̄_t = u_t·ū_t − Y_t·y_t.

    Args:
      q, k: [B, H, 2N, T].
      u: [B, H, 2P, T].
      total_decay: [B, H, T], Λ.
      past: [B, s, t], 0 where t reads s and −inf where it does not; it gets no gradient.

    Returns:
      [B, H, 2P, T].
    """
    return _weighted(q, k, u, total_decay, past)[0]


def _weighted(q: Array, k: Array, u: Array, total_decay: Array, past: Array) -> tuple[Array, ...]:
    """(y, and what its gradient needs: W [B, H, s, t], keys, values, and the weighted scores [B, H, 2s, t])."""
    weight = jnp.exp(total_decay[..., None] - total_decay[..., None, :] + past[:, None])
    keys = jnp.concatenate([k, _over_i(k)], axis=-1)  # [B, H, 2N, 2s]
    values = jnp.concatenate([u, -_over_i(u)], axis=-1)
    scores = _times_twice(_product("bhns,bhnt->bhst", keys, q), weight)
    return _product("bhps,bhst->bhpt", values, scores), weight, keys, values, scores


def _times_twice(scores: Array, weight: Array) -> Array:
    """Each half of scores [B, H, 2s, t] times weight [B, H, s, t]."""
    batch, heads, *sizes = weight.shape
    return (scores.reshape(batch, heads, 2, *sizes) * weight[:, :, None]).reshape(scores.shape)


def _within_chunk_forward(*arguments: Array):
    y, *kept = _weighted(*arguments)
    return y, (arguments[0], arguments[2], y, *kept)


def _within_chunk_backward(residuals, y_bar: Array):
    q, u, y, weight, keys, values, scores = residuals
    scores_bar = _times_twice(_product("bhps,bhpt->bhst", values, y_bar), weight)
    q_bar = _product("bhns,bhst->bhnt", keys, scores_bar)
    k_bar, over_i_bar = jnp.split(_product("bhnt,bhst->bhns", q, scores_bar), 2, axis=-1)
    k_bar -= _over_i(over_i_bar)
    u_bar, minus_bar = jnp.split(_product("bhpt,bhst->bhps", y_bar, scores), 2, axis=-1)
    u_bar += _over_i(minus_bar)
    decay_bar = jnp.sum(u * u_bar, axis=-2) - jnp.sum(y_bar * y, axis=-2)
    return q_bar, k_bar, u_bar, decay_bar, None


_within_chunk.defvjp(_within_chunk_forward, _within_chunk_backward)


def _recurrent(h0: Array, tokens: tuple[Array, ...], decay: Array, phase: Array, method: str) -> tuple[Array, Array]:
    """The recurrence itself, with every state [S, B, H, N, P] in memory."""
    q, k, x, dt, omega, starts = tokens
    a = jnp.exp(-dt * decay)[..., None] * expi(omega[..., None] * phase)
    a = jnp.where(starts[..., None, None], 0, a)  # [B, S, H, N]
    entering = k[:, :, None, :, None] * (dt[..., None] * x)[:, :, :, None]
    a = jnp.broadcast_to(a[..., None], entering.shape)
    states, last = linear_recurrence(jnp.moveaxis(a, 1, 0), jnp.moveaxis(entering, 1, 0), h0, method)
    y = jnp.einsum("bsn,sbhnp->bshp", q.conj(), states, precision=HIGHEST) / q.shape[-1]
    return y, last
