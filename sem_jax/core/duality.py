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

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from sem_jax.core.complex_ops import HIGHEST, expi
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
    h0: Array,
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
      h0: [B, H, N, P] complex, the state before the first token.
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
    if method != "chunked":
        return _recurrent(h0, tokens, decay, phase, method)

    batch, length = starts.shape
    size = min(chunk, length)
    padding = -length % size

    def in_chunks(a: Array) -> Array:
        # A padded token has δ = ω = 0: it changes no state, and what it reads is cut off.
        a = jnp.pad(a, [(0, 0), (0, padding)] + [(0, 0)] * (a.ndim - 2))
        return jnp.moveaxis(a.reshape(batch, -1, size, *a.shape[2:]), 1, 0)

    def step(h: Array, tokens: tuple[Array, ...]) -> tuple[Array, Array]:
        return _one_chunk(h, tokens, decay, phase)

    inputs = tuple(map(in_chunks, tokens))
    if length <= size:
        h, y = step(h0, tuple(a[0] for a in inputs))
        return y, h
    h, y = jax.lax.scan(jax.checkpoint(step), h0, inputs)
    return jnp.moveaxis(y, 0, 1).reshape(batch, -1, *y.shape[3:])[:, :length], h


class _Pair(NamedTuple):
    """A complex array by its parts.

    Real arrays all the way: XLA:CPU vectorises their products and sums, and takes complex entries apart one by one.
    """

    real: Array
    imag: Array

    def times(self, factor: Array) -> _Pair:
        """The product with a real array."""
        return _Pair(factor * self.real, factor * self.imag)


def _pair(z: Array) -> _Pair:
    return _Pair(z.real, z.imag)


def _one_chunk(h: Array, tokens: tuple[Array, ...], decay: Array, phase: Array) -> tuple[Array, Array]:
    """(state after the chunk, y [B, T, H, P])."""
    q, k, x, dt, omega, starts = tokens
    length, states = q.shape[1:]
    # Heads before tokens: every product below is one batch of matrices over [B, H].
    total_decay, total_turn = (jnp.cumsum(jnp.swapaxes(rate, 1, 2), axis=-1) for rate in (dt * decay, omega))
    theta = total_turn[..., None] * phase[:, None]  # [B, H, T, N]
    cos, sin = jnp.cos(theta), jnp.sin(theta)
    turned_q, turned_k = (_turned_back(_pair(qk[:, None]), cos, sin) for qk in (q, k))
    u = _pair(jnp.swapaxes(x, 1, 2)).times(jnp.swapaxes(dt, 1, 2)[..., None])  # [B, H, T, P]

    document = jnp.cumsum(starts, axis=-1)
    past = jnp.tril(jnp.ones((length, length), bool)) & (document[:, :, None] == document[:, None, :])
    exponent = total_decay[..., None, :] - total_decay[..., None]  # Λ_s − Λ_t [B, H, T, T]
    weight = jnp.exp(jnp.where(past[:, None], exponent, -jnp.inf)) / states
    within = _product(_conjugate_products(turned_q, turned_k).times(weight), u)

    carried = jnp.where((document == 0)[:, None], jnp.exp(-total_decay), 0) / states
    conjugate = _Pair(turned_q.real, -turned_q.imag).times(carried[..., None])
    from_before = _product(conjugate, _pair(h))
    y = jax.lax.complex(within.real + from_before.real, within.imag + from_before.imag)

    # What is left of each token at the end of the chunk, if its document is still read.
    left = jnp.where((document == document[:, -1:])[:, None], jnp.exp(total_decay - total_decay[..., -1:]), 0)
    rows = _Pair(*(jnp.swapaxes(part, -1, -2) for part in turned_k.times(left[..., None])))
    kept = jnp.where((document[:, -1] == 0)[:, None], jnp.exp(-total_decay[..., -1]), 0)
    turn = jax.lax.complex(cos[:, :, -1], sin[:, :, -1])[..., None]
    h = turn * (kept[..., None, None] * h + jax.lax.complex(*_product(rows, u)))
    return h, jnp.swapaxes(y, 1, 2)


def _turned_back(z: _Pair, cos: Array, sin: Array) -> _Pair:
    """z·e^{−iθ}."""
    return _Pair(z.real * cos + z.imag * sin, z.imag * cos - z.real * sin)


def _conjugate_products(q: _Pair, k: _Pair) -> _Pair:
    """q_tᴴ k_s of all pairs: [..., T, N] twice to [..., T, T], by two real products."""
    left = jnp.concatenate(q, axis=-1)
    right = (jnp.concatenate(parts, axis=-1) for parts in (k, (k.imag, -k.real)))
    return _Pair(*(jnp.einsum("...tn,...sn->...ts", left, each, precision=HIGHEST) for each in right))


def _product(a: _Pair, b: _Pair) -> _Pair:
    """a·b of matrices [..., I, J] and [..., J, K], by two real products."""
    both = jnp.concatenate(b, axis=-1)
    by_real, by_imag = (jnp.matmul(part, both, precision=HIGHEST) for part in a)
    (rr, ri), (ir, ii) = jnp.split(by_real, 2, axis=-1), jnp.split(by_imag, 2, axis=-1)
    return _Pair(rr - ii, ri + ir)


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
