"""A real selective state space by matrix products, chunk by chunk (Dao and Gu, 2024, arXiv:2405.21060, section 6)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array

CHUNK = 64


def state_space(q: Array, k: Array, x: Array, log_decay: Array, h: Array, position: Array) -> tuple[Array, Array]:
    """h_t = exp(log_decay_t)·h_{t−1} + k_t x_tᵀ and y_t = h_tᵀ q_t for each head.

    Args:
      q, k: [B, S, N], of all heads.
      x: [B, S, H, P].
      log_decay: [B, S, H], not positive.
      h: [B, H, N, P], the state before.
      position: [B, S], of each token in its document; where it is 0 the state before is forgotten.

    Returns:
      (y [B, S, H, P], the state after).
    """
    length, size = x.shape[1], min(CHUNK, x.shape[1])
    padding = -length % size

    def in_chunks(a: Array) -> Array:
        # A padded token neither decays nor adds; it belongs to the last document.
        a = jnp.pad(a, [(0, 0), (0, padding)] + [(0, 0)] * (a.ndim - 2))
        return jnp.swapaxes(a.reshape(len(a), -1, size, *a.shape[2:]), 0, 1)

    if padding:
        beyond = position[:, -1:] + 1 + jnp.arange(padding)
        position = jnp.concatenate([position, beyond], axis=1)
    positions = jnp.swapaxes(position.reshape(len(x), -1, size), 0, 1)
    h, y = jax.lax.scan(_chunk, h, (*map(in_chunks, (q, k, x, log_decay)), positions))
    y = jnp.swapaxes(y, 0, 1).reshape(len(x), -1, *x.shape[2:])
    return y[:, :length], h


def _chunk(h: Array, inputs: tuple[Array, ...]) -> tuple[Array, Array]:
    q, k, x, log_decay, position = inputs
    index = jnp.arange(q.shape[1])
    total = jnp.cumsum(log_decay, axis=1)  # [B, T, H]
    visible = (index <= index[:, None]) & (index >= index[:, None] - position[..., None])  # [B, T, T]
    gap = jnp.where(visible[..., None], total[:, :, None] - total[:, None], -jnp.inf)  # [B, T, T, H]
    scores = jnp.einsum("bin,bjn->bij", q, k)[..., None] * jnp.exp(gap)
    reach = jnp.exp(total) * (position > index)[..., None]  # of the state before the chunk, [B, T, H]
    y = jnp.einsum("bijh,bjhp->bihp", scores, x) + jnp.einsum("bin,bih,bhnp->bihp", q, reach, h)
    added = jnp.einsum("bjn,bjh,bjhp->bhnp", k, jnp.exp(gap[:, -1]), x)
    return reach[:, -1, :, None, None] * h + added, y
