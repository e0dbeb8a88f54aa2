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

    Real arrays all the way: XLA:CPU vectorises their products and sums, and takes complex entries apart one by one.
    Heads come first and tokens last: every product is one batch of matrices over [H, B], and the longest axis is the
    one that lies contiguous in memory.
    """
    q, k, x, dt, omega, starts = tokens
    length, states = q.shape[1:]
    dt, omega = jnp.transpose(dt, (2, 0, 1)), jnp.transpose(omega, (2, 0, 1))  # [H, B, T]
    total_decay = jnp.cumsum(dt * decay[:, None, None], axis=-1)
    theta = jnp.cumsum(omega, axis=-1)[:, :, None] * phase[:, None, :, None]
    cos, sin = stored(cos_sin, theta)  # [H, B, N, T]
    turned_q, turned_k = (_Pair(*_turned_back(jnp.swapaxes(z, 1, 2), cos, sin)) for z in (q / states, k))
    rows_q, rows_k = turned_q.stacked(), turned_k.stacked()
    x = jnp.transpose(x, (2, 0, 3, 1))
    u = _Pair(x.real * dt[:, :, None], x.imag * dt[:, :, None])  # [H, B, P, T]

    document = jnp.cumsum(starts, axis=-1)
    past = jnp.triu(jnp.ones((length, length), bool)) & (document[:, :, None] == document[:, None, :])
    exponent = total_decay[..., None] - total_decay[..., None, :]  # Λ_s − Λ_t [H, B, s, t]
    weight = jnp.exp(jnp.where(past, exponent, -jnp.inf))
    real, imag = (weight * _product("hbns,hbnt->hbst", rows, rows_q) for rows in (rows_k, turned_k.over_i()))
    y = _product("hbps,hbst->hbpt", u.stacked(), real) - _product("hbps,hbst->hbpt", u.over_i(), imag)

    # What is left of each token at the end of the chunk, if its document is still read.
    left = jnp.where(document == document[:, -1:], jnp.exp(total_decay - total_decay[..., -1:]), 0)
    of_real, of_imag = (_product("hbnt,hbpt->hbnp", rows_k, part * left[:, :, None]) for part in u)
    (rr, ir), (ri, ii) = jnp.split(of_real, 2, axis=2), jnp.split(of_imag, 2, axis=2)
    last = jax.lax.complex(rr - ii, ri + ir)
    if h is not None:
        before = jnp.swapaxes(h, 0, 1)
        pair = _Pair(before.real, before.imag)
        read = [_product("hbnp,hbnt->hbpt", rows, rows_q) for rows in (pair.stacked(), pair.over_i())]
        y += jnp.concatenate(read, axis=2) * jnp.where(document == 0, jnp.exp(-total_decay), 0)[:, :, None]
        last += jnp.where(document[:, -1] == 0, jnp.exp(-total_decay[..., -1]), 0)[..., None, None] * before
    last *= jax.lax.complex(cos[..., -1], sin[..., -1])[..., None]
    y = jax.lax.complex(*jnp.split(y, 2, axis=2))
    return jnp.swapaxes(last, 0, 1), jnp.transpose(y, (1, 3, 0, 2))


class _Pair(NamedTuple):
    """A complex array [H, B, N, T] by its parts."""

    real: Array
    imag: Array

    def stacked(self) -> Array:
        """[H, B, 2N, T], Re above Im: with the stack of q, the rows of k give Re(q̄k)."""
        return jnp.concatenate([self.real, self.imag], axis=2)

    def over_i(self) -> Array:
        """The stack of the array divided by i, whose rows give Im(q̄k)."""
        return jnp.concatenate([self.imag, -self.real], axis=2)


def _product(subscripts: str, a: Array, b: Array) -> Array:
    return jnp.einsum(subscripts, a, b, precision=HIGHEST)


@jax.custom_vjp
def _turned_back(z: Array, cos: Array, sin: Array) -> tuple[Array, Array]:
    """The parts [H, B, N, T] of z·e^{−iθ}, z [B, N, T]."""
    return z.real * cos + z.imag * sin, z.imag * cos - z.real * sin


def _turned_back_forward(z: Array, cos: Array, sin: Array):
    return _turned_back(z, cos, sin), (z, cos, sin)


def _turned_back_backward(residuals, cotangents):
    z, cos, sin = residuals
    real_bar, imag_bar = cotangents
    z_real, z_imag = stored(lambda r, i, c, s: (r * c - i * s, r * s + i * c), real_bar, imag_bar, cos, sin)
    cos_bar = z.real * real_bar + z.imag * imag_bar
    z_bar = jax.lax.complex(jnp.sum(z_real, axis=0), -jnp.sum(z_imag, axis=0))
    return z_bar, cos_bar, z.imag * real_bar - z.real * imag_bar


_turned_back.defvjp(_turned_back_forward, _turned_back_backward)


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
