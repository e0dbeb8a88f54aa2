"""The SEM's selective mixer with all that is complex made real: the control that tells what the phase is worth."""

from __future__ import annotations

from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from arena.mamba2 import Memory
from arena.real import causal_taps, depth_scale, matrix
from arena.ssd import state_space
from sem_jax.config import ModelConfig
from sem_jax.core.complex_ops import abs_sq, real_matmul, rms_norm
from sem_jax.modules.block import Block, Context
from sem_jax.modules.linear import Linear
from sem_jax.modules.probe import Probe, unobserved


class RealMixer(Block):
    """`SelectiveMixer` with real weights and no phase: the same parts in the same order, the same initial values.

    What a propagator does is turn phases, so nothing of it remains. The wave's two components count as one channel.
    """

    PARTS: ClassVar = {
        "in_proj": ("gamma", "in_proj"),
        "conv": ("kernel", "conv_bias"),
        "ssm": ("query", "key", "q_bias", "k_bias", "rates", "decay", "skip"),
        "output_gate": ("output_gate",),
        "residual": ("out", "output_scale"),
    }
    RESIDUAL: ClassVar = frozenset({"residual"})

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs, layer: int):
        del layer
        dim, mixer = config.hidden_dim, config.mixer
        self.heads, self.scale = mixer.num_heads, depth_scale(config)
        self.gamma = nnx.Param(jnp.ones(dim), decay=False)
        self.in_proj = matrix(rngs, dim, dim)
        bound = mixer.conv_width**-0.5
        kernel = jax.random.uniform(rngs.params(), (mixer.conv_width, dim), minval=-bound, maxval=bound)
        self.kernel, self.conv_bias = nnx.Param(kernel, decay=False), nnx.Param(jnp.zeros(dim), decay=False)
        self.query, self.key = (matrix(rngs, mixer.state_dim, dim) for _ in range(2))
        self.q_bias, self.k_bias = (nnx.Param(jnp.zeros(mixer.state_dim), decay=False) for _ in range(2))
        self.rates = Linear(dim, self.heads, rngs=rngs)
        log_decay = jax.random.uniform(rngs.params(), (self.heads,), minval=jnp.log(0.02), maxval=jnp.log(0.7))
        self.decay = nnx.Param(jnp.log(jnp.expm1(jnp.exp(log_decay))), decay=False)
        self.skip = nnx.Param(jnp.ones(dim), decay=False)
        self.output_gate = Linear(dim, dim, bias_init=1.0, rngs=rngs)
        self.out = matrix(rngs, dim, dim)
        self.output_scale = nnx.Param(jnp.full(dim, 2.5), decay=False)

    def initial_state(self, batch_size: int) -> Memory:
        """Zero."""
        dim = self.out.shape[-1]
        taps = jnp.zeros((batch_size, self.kernel.shape[-2] - 1, dim))
        return Memory(taps, jnp.zeros((batch_size, self.heads, self.query.shape[-2], dim // self.heads)))

    def __call__(
        self, x: Array, state: Memory, context: Context, probe: Probe = unobserved, prepared: None = None
    ) -> tuple[Array, Memory, tuple[()]]:
        """See `Block`."""
        del prepared
        entering = probe("in_proj", real_matmul(rms_norm(x, self.gamma[...]), self.in_proj[...]))
        z, taps = causal_taps(entering, state.taps, self.kernel[...], context.position)
        z = probe("conv", z + self.conv_bias[...])
        y, h = self._state_space(z, state.ssm, context.position)
        y = probe("output_gate", probe("ssm", y) * jax.nn.silu(self.output_gate(entering)))
        y = self.scale * self.output_scale[...] * real_matmul(y, self.out[...])
        return probe("residual", x + y), Memory(taps, h), ()

    def _state_space(self, z: Array, h: Array, position: Array) -> tuple[Array, Array]:
        q, k = self._normalised(z, self.query, self.q_bias), self._normalised(z, self.key, self.k_bias)
        dt = jax.nn.softplus(self.rates(z) + jnp.log(jnp.expm1(1.0)))
        by_head = z.reshape(*z.shape[:2], self.heads, -1) * dt[..., None]
        y, h = state_space(q / q.shape[-1], k, by_head, -dt * jax.nn.softplus(self.decay[...]), h, position)
        return y.reshape(z.shape) + self.skip[...] * z, h

    def _normalised(self, z: Array, weight: nnx.Param, bias: nnx.Param) -> Array:
        read = real_matmul(z, weight[...])
        return read * jax.lax.rsqrt(jnp.mean(abs_sq(read), axis=-1, keepdims=True) + 1e-6) + bias[...]
