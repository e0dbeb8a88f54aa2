"""Mixers that lack one part of the default's, or have it in another form: what `variants.py` compares."""

from __future__ import annotations

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from sem_jax.config import MixerConfig, ModelConfig
from sem_jax.core.complex_ops import complex_matmul, rms_norm
from sem_jax.core.duality import selective_state_space
from sem_jax.modules.block import Block, Context
from sem_jax.modules.linear import Linear, complex_weight
from sem_jax.modules.mixer import CausalConv, SpinorGate
from sem_jax.modules.probe import Probe, unobserved
from sem_jax.modules.selective_mixer import SelectiveMixer, SelectiveSSM


class NoSpinorGate(SelectiveMixer):
    """The output gate reads the normalised input."""

    class Identity(SpinorGate):
        def __init__(self) -> None:
            pass

        def __call__(self, x: Array) -> Array:
            return x

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs, layer: int):
        super().__init__(config, rngs, layer)
        self.spinor_gate = self.Identity()


class NoConvolution(SelectiveMixer):
    """The state space reads the spinor gate's output."""

    class Identity(CausalConv):
        def __init__(self, width: int) -> None:
            self.kernel = nnx.Variable(jnp.zeros((width, 1, 2, 2)))  # the state of a layer has width − 1 taps

        def __call__(self, x: Array, taps: Array, position: Array) -> tuple[Array, Array]:
            return x, taps

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs, layer: int):
        super().__init__(config, rngs, layer)
        self.conv = self.Identity(config.mixer.conv_width)


class AmplitudeGate(SelectiveMixer):
    """The amplitude gate of the fixed mixer before the state space."""

    PARTS: ClassVar = SelectiveMixer.PARTS | {"amplitude_gate": ("activation_threshold",)}


class NoOutputGate(SelectiveMixer):
    """What the state space gives out goes straight to the projection."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs, layer: int):
        super().__init__(config, rngs, layer)
        del self.output_gate

    def gate_output(self, z: Array, rotated: Array, probe: Probe) -> Array:
        del rotated
        return probe("output_gate", z)


class LowRank(nnx.Module):
    """W = BA of rank r in the place of a full matrix."""

    def __init__(self, in_features: int, out_features: int, rank: int, bias_init: float, rngs: nnx.Rngs):
        self.down = Linear(in_features, rank, rngs=rngs)
        self.up = Linear(rank, out_features, bias_init=bias_init, rngs=rngs)

    def of_parts(self, z: Array) -> Array:
        return self.up(self.down.of_parts(z))


class LowRankOutputGate(SelectiveMixer):
    """The output gate of rank D/8."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs, layer: int):
        super().__init__(config, rngs, layer)
        dim = config.hidden_dim
        self.output_gate = LowRank(2 * dim, dim, dim // 8, 1.0, rngs)


class LowRankSpinorGate(SelectiveMixer):
    """The spinor gate of rank D/8."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs, layer: int):
        super().__init__(config, rngs, layer)
        dim = config.hidden_dim
        self.spinor_gate.gate_proj = LowRank(2 * dim, dim, dim // 8, 0.0, rngs)


class NoBias(SelectiveMixer):
    """Queries and keys without a learned bias."""

    class SSM(SelectiveSSM):
        def __init__(self, dim: int, config: MixerConfig, rngs: nnx.Rngs):
            super().__init__(dim, config, rngs)
            self.qk_bias = nnx.Variable(jnp.zeros_like(self.qk_bias[...]))


class NoSkip(SelectiveMixer):
    """The state alone gives out: no d·x beside it."""

    class SSM(SelectiveSSM):
        def __init__(self, dim: int, config: MixerConfig, rngs: nnx.Rngs):
            super().__init__(dim, config, rngs)
            self.skip = nnx.Variable(jnp.zeros_like(self.skip[...]))


class NoPhase(SelectiveMixer):
    """No state turns at the start."""

    class SSM(SelectiveSSM):
        def __init__(self, dim: int, config: MixerConfig, rngs: nnx.Rngs):
            super().__init__(dim, config, rngs)
            self.phase[...] = jnp.zeros_like(self.phase[...])


class Trapezoid(SelectiveMixer):
    """The input by a trapezoidal rule: h_t = α_t·h_{t−1} + (1 − λ_t)·δ_t·α_t·v_{t−1} + λ_t·δ_t·v_t with v_t = k_t x_tᵀ.

    λ_t is read from the token (Mamba-3, arXiv:2603.15569, exponential-trapezoidal discretisation). Summed over its two
    appearances, v_s has the coefficient λ_s·δ_s + (1 − λ_{s+1})·δ_{s+1} in every later state and λ_s·δ_s in its own, so
    that the recurrence stays what it was but for one term at s = t. It looks at the next token only to take out again
    what that one adds; the state that it hands on is not the one of the equation, so it is for whole sequences only.
    """

    class SSM(SelectiveSSM):
        def __init__(self, dim: int, config: MixerConfig, rngs: nnx.Rngs):
            super().__init__(dim, config, rngs)
            # At 0.88 a new token counts nearly as by the plain rule.
            self.share = Linear(2 * dim, config.num_heads, bias_init=2.0, rngs=rngs)

        def __call__(self, x: Array, h0: Array | None, position: Array) -> tuple[Array, Array]:
            q, k = self.queries_and_keys(x)
            dt, omega = self.step_sizes(x)
            share = jax.nn.sigmoid(self.share.of_parts(x))
            from_next = jnp.pad(((1 - share) * dt)[:, 1:], ((0, 0), (0, 1), (0, 0)))
            by_head = x.reshape(*x.shape[:2], self.config.num_heads, -1)
            entering = by_head * (share + from_next / dt)[..., None]
            decay, phase = jax.nn.softplus(self.decay[...]), self.phase[...]
            y, h = selective_state_space(q, k, entering, dt, omega, decay, phase, h0, position == 0, self.config.scan)
            match = jnp.mean(k * jnp.conj(q), axis=-1)[..., None, None]
            y = y - match * from_next[..., None] * by_head
            return y.reshape(x.shape) + self.skip[...] * x, h


class NormalisedOutput(SelectiveMixer):
    """An RMS norm between the state space and the output gate."""

    def gate_output(self, z: Array, rotated: Array, probe: Probe) -> Array:
        return super().gate_output(rms_norm(z, jnp.ones(z.shape[-1])), rotated, probe)


class ChannelMixer(Block):
    """x + s·W_out(W_up n·silu(Re W_gate n)), n = norm(x), of width D/2: what a transformer's gated MLP would be."""

    PARTS: ClassVar = {"channel": ("gamma", "up", "gate", "down", "scale")}
    RESIDUAL: ClassVar = frozenset({"channel"})

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs, layer: int):
        del layer
        dim = config.hidden_dim
        self.gamma = nnx.Param(jnp.ones(dim), decay=False)
        self.up, self.gate = complex_weight(rngs, dim // 2, dim), complex_weight(rngs, dim // 2, dim)
        self.down = complex_weight(rngs, dim, dim // 2)
        self.scale = nnx.Param(jnp.full(dim, 2.5 * (2 * config.num_layers) ** -0.5), decay=False)

    def __call__(
        self, x: Array, state: Any, context: Context, probe: Probe = unobserved, prepared: None = None
    ) -> tuple[Array, Any, tuple[()]]:
        del context, prepared
        n = rms_norm(x, self.gamma[...])
        gated = complex_matmul(n, self.up[...]) * jax.nn.silu(complex_matmul(n, self.gate[...]).real)
        return probe("channel", x + self.scale[...] * complex_matmul(gated, self.down[...])), state, ()
