"""A transformer's layer: causal attention with rotary positions and QK-norm, and a SwiGLU."""

from __future__ import annotations

from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from arena.real import depth_scale, matrix
from sem_jax.config import ModelConfig
from sem_jax.core.complex_ops import real_matmul, rms_norm
from sem_jax.modules.block import Block, Context
from sem_jax.modules.probe import Probe, unobserved


class Cache(NamedTuple):
    """All that was read: it grows by a key and a value a token."""

    keys: Array  # [B, H, T, P], rotated
    values: Array  # [B, H, T, P]


class GPT(Block):
    """x + s·attention(norm(x)), then x + s·SwiGLU(norm(x)) (arXiv:2104.09864, 2002.05202, 2010.04245)."""

    PARTS: ClassVar = {
        "attention": ("attention_gamma", "query", "key", "value", "out", "q_gamma", "k_gamma"),
        "mlp": ("mlp_gamma", "gate", "up", "down"),
    }
    RESIDUAL: ClassVar = frozenset({"attention", "mlp"})

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs, layer: int):
        del layer
        dim, self.heads, self.scale = config.hidden_dim, config.mixer.num_heads, depth_scale(config)
        hidden = 8 * round(dim * 8 / 3 / 8)  # as many parameters as a plain MLP of width 4D
        self.attention_gamma, self.mlp_gamma = (nnx.Param(jnp.ones(dim), decay=False) for _ in range(2))
        self.q_gamma, self.k_gamma = (nnx.Param(jnp.ones(dim // self.heads), decay=False) for _ in range(2))
        self.query, self.key, self.value, self.out = (matrix(rngs, dim, dim) for _ in range(4))
        self.gate, self.up = matrix(rngs, hidden, dim), matrix(rngs, hidden, dim)
        self.down = matrix(rngs, dim, hidden)

    def initial_state(self, batch_size: int) -> Cache:
        """An empty cache."""
        empty = jnp.zeros((batch_size, self.heads, 0, self.query.shape[-1] // self.heads))
        return Cache(empty, empty)

    def __call__(
        self, x: Array, state: Cache, context: Context, probe: Probe = unobserved, prepared: None = None
    ) -> tuple[Array, Cache, tuple[()]]:
        """See `Block`; the state after the call holds as many tokens more."""
        del prepared
        n = rms_norm(x, self.attention_gamma[...])
        q, k, v = (self._by_head(real_matmul(n, w[...])) for w in (self.query, self.key, self.value))
        q, k = rms_norm(q, self.q_gamma[...]), rms_norm(k, self.k_gamma[...])
        q, k = (rotary(each, context.position) for each in (q, k))
        cache = Cache(jnp.concatenate([state.keys, k], axis=2), jnp.concatenate([state.values, v], axis=2))
        attended = jnp.swapaxes(attention(q, *cache, context.position), 1, 2).reshape(x.shape)
        x = probe("attention", x + self.scale * real_matmul(attended, self.out[...]))
        n = rms_norm(x, self.mlp_gamma[...])
        hidden = jax.nn.silu(real_matmul(n, self.gate[...])) * real_matmul(n, self.up[...])
        return probe("mlp", x + self.scale * real_matmul(hidden, self.down[...])), cache, ()

    def _by_head(self, x: Array) -> Array:
        return jnp.swapaxes(x.reshape(*x.shape[:2], self.heads, -1), 1, 2)


def rotary(x: Array, position: Array) -> Array:
    """Turns the pairs (j, j + P/2) of x [B, H, S, P] by position·10000^(−2j/P)."""
    half = x.shape[-1] // 2
    angle = position[:, None, :, None] * 10000.0 ** (-jnp.arange(half) / half)
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    a, b = x[..., :half], x[..., half:]
    return jnp.concatenate([a * cos - b * sin, a * sin + b * cos], axis=-1)


def attention(q: Array, k: Array, v: Array, position: Array) -> Array:
    """softmax(q·k/√P)·v over what came before in the same document.

    Args:
      q: [B, H, S, P], of the last S of T tokens.
      k, v: [B, H, T, P].
      position: [B, S], of the last S tokens in their documents.

    Returns:
      [B, H, S, P].
    """
    total, length = k.shape[2], q.shape[2]
    index = jnp.arange(total - length, total)[:, None]
    other = jnp.arange(total)
    visible = (other <= index) & (other >= index - position[..., None])  # [B, S, T]
    scores = jnp.matmul(q, jnp.swapaxes(k, 2, 3)) / q.shape[-1] ** 0.5
    weights = jax.nn.softmax(jnp.where(visible[:, None], scores, -jnp.inf))
    return jnp.matmul(weights, v)
