"""Mamba-2's layer (Dao and Gu, 2024, arXiv:2405.21060): a real selective state space with one decay a head."""

from __future__ import annotations

from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from arena.real import causal_taps, depth_scale, matrix
from arena.ssd import state_space
from sem_jax.config import ModelConfig
from sem_jax.core.complex_ops import real_matmul, rms_norm
from sem_jax.modules.block import Block, Context
from sem_jax.modules.linear import Linear
from sem_jax.modules.probe import Probe, unobserved

EXPAND, WIDTH = 2, 4


class Memory(NamedTuple):
    """What one layer remembers of the past."""

    taps: Array  # [B, K−1, C], the last inputs of the convolution
    ssm: Array  # [B, H, N, P]


class Mamba2(Block):
    """x + s·W_o norm(y·silu(z)), y = SSD(silu(conv(x', B, C)), Δ) + d·x', all read from norm(x)."""

    PARTS: ClassVar = {
        "mamba2": (
            *("gamma", "gate", "inputs", "keys", "queries", "rates", "kernel", "conv_bias"),
            *("log_decay", "skip", "y_gamma", "out"),
        )
    }
    RESIDUAL: ClassVar = frozenset({"mamba2"})

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs, layer: int):
        del layer
        dim, heads, states = config.hidden_dim, config.mixer.num_heads, config.mixer.state_dim
        self.heads, self.states, self.scale = heads, states, depth_scale(config)
        inner, channels = EXPAND * dim, EXPAND * dim + 2 * states
        self.gamma, self.y_gamma = nnx.Param(jnp.ones(dim), decay=False), nnx.Param(jnp.ones(inner), decay=False)
        self.gate, self.inputs = matrix(rngs, inner, dim), matrix(rngs, inner, dim)
        self.keys, self.queries = matrix(rngs, states, dim), matrix(rngs, states, dim)
        self.rates = Linear(dim, heads, rngs=rngs)
        step = jnp.exp(jax.random.uniform(rngs.params(), (heads,), minval=jnp.log(1e-3), maxval=jnp.log(1e-1)))
        self.rates.bias[...] = jnp.log(jnp.expm1(step))
        bound = WIDTH**-0.5
        kernel = jax.random.uniform(rngs.params(), (WIDTH, channels), minval=-bound, maxval=bound)
        self.kernel, self.conv_bias = nnx.Param(kernel, decay=False), nnx.Param(jnp.zeros(channels), decay=False)
        decay = jax.random.uniform(rngs.params(), (heads,), minval=1, maxval=16)
        self.log_decay = nnx.Param(jnp.log(decay), decay=False)
        self.skip = nnx.Param(jnp.ones(heads), decay=False)
        self.out = matrix(rngs, dim, inner)

    def initial_state(self, batch_size: int) -> Memory:
        """Zero."""
        inner = self.out.shape[-1]
        taps = jnp.zeros((batch_size, WIDTH - 1, inner + 2 * self.states))
        return Memory(taps, jnp.zeros((batch_size, self.heads, self.states, inner // self.heads)))

    def __call__(
        self, x: Array, state: Memory, context: Context, probe: Probe = unobserved, prepared: None = None
    ) -> tuple[Array, Memory, tuple[()]]:
        """See `Block`."""
        del prepared
        n, inner = rms_norm(x, self.gamma[...]), self.out.shape[-1]
        read = [real_matmul(n, w[...]) for w in (self.inputs, self.keys, self.queries)]
        mixed, taps = causal_taps(jnp.concatenate(read, axis=-1), state.taps, self.kernel[...], context.position)
        mixed = jax.nn.silu(mixed + self.conv_bias[...])
        u, k, q = jnp.split(mixed, [inner, inner + self.states], axis=-1)
        dt = jax.nn.softplus(self.rates(n))
        u = u.reshape(*u.shape[:2], self.heads, -1)
        log_decay = -dt * jnp.exp(self.log_decay[...])
        y, h = state_space(q, k, u * dt[..., None], log_decay, state.ssm, context.position)
        y = (y + u * self.skip[...][:, None]).reshape(*x.shape[:2], inner)
        y = rms_norm(y * jax.nn.silu(real_matmul(n, self.gate[...])), self.y_gamma[...])
        return probe("mamba2", x + self.scale * real_matmul(y, self.out[...])), Memory(taps, h), ()
