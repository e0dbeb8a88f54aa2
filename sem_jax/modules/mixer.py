"""The sequence mixer: spinor gate, causal convolution, amplitude gate and selective complex state space."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from sem_jax.config import MixerConfig, ModelConfig
from sem_jax.core.causal_conv import causal_conv
from sem_jax.core.complex_ops import abs_sq, complex_matmul, complex_normal, one_minus_exp_neg, rms_norm
from sem_jax.core.scan import clamped_recurrence
from sem_jax.core.selective import scaled_by_group, selective_recurrence, transitions
from sem_jax.modules.linear import Linear, complex_weight
from sem_jax.modules.probe import Probe, unobserved


class MixerState(NamedTuple):
    """What one layer remembers of the past."""

    taps: Array  # [B, K-1, D] complex, the last inputs of the convolution
    ssm: Array  # [B, G, N] complex


class SpinorGate(nnx.Module):
    """x + g·(Rx − x): a gated block-diagonal complex rotation (SPEC section 2, Mixer 1)."""

    def __init__(self, dim: int, block_size: int, rngs: nnx.Rngs):
        shape = (dim // block_size, block_size, block_size)
        self.rotation = nnx.Param(jnp.eye(block_size) + complex_normal(rngs.params(), shape, 0.02**2 * 2))
        self.gate_proj = Linear(2 * dim, dim, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        """[B, S, D] complex to the same."""
        blocks = self.rotation[...]
        # Blocks are too small for the split product of `complex_matmul` to pay.
        rotated = jnp.einsum("...ni,noi->...no", x.reshape(*x.shape[:-1], *blocks.shape[:2]), blocks).reshape(x.shape)
        # The barrier holds for the cotangent, too: the transposed products read an array and recompute nothing.
        return x + self.gate(x) * (jax.lax.optimization_barrier(rotated) - x)

    def gate(self, x: Array) -> Array:
        """g in 0..1, real [B, S, D]: how far each channel is rotated."""
        return jax.nn.sigmoid(1.7015 * self.gate_proj.of_parts(x))


class CausalConv(nnx.Module):
    """Depthwise causal convolution with a real 2x2 kernel on (re, im) per tap and channel (SPEC section 2, Mixer 2).

    The general 2x2 kernel is widely linear: it can treat a wave and its conjugate differently.
    """

    def __init__(self, dim: int, width: int, rngs: nnx.Rngs):
        bound = (2 * width) ** -0.5
        shape = (width, dim, 2, 2)  # tap (the last is the present), channel, out part, in part
        self.kernel = nnx.Param(jax.random.uniform(rngs.params(), shape, minval=-bound, maxval=bound))
        self.bias = nnx.Param(jnp.zeros((dim, 2)))

    def __call__(self, x: Array, taps: Array, position: Array) -> tuple[Array, Array]:
        """Convolves x [B, S, D] after the K−1 inputs `taps`; taps from before a document's start do not count."""
        extended = jnp.concatenate([taps, x], axis=1)
        y = causal_conv(extended, self.kernel[...], self.bias[...], position)
        return y, extended[:, x.shape[1] :]


class SelectiveSSM(nnx.Module):
    """Selective complex diagonal state space on G contiguous groups of channels (SPEC section 2, Mixer 4).

    h_t = a_t·h_{t−1} + δ_t·(B x_t), y = C h, a = exp(−δ·softplus(A))·exp(iωφ), with (δ, ω) read from the input.
    """

    def __init__(self, dim: int, config: MixerConfig, rngs: nnx.Rngs):
        self.config = config
        groups, states, width = config.num_groups, config.state_dim, dim // config.num_groups
        if config.ssm_init == "ring":
            # Time constants spread evenly in log time, phases around the circle (LRU, Orvieto et al., 2023).
            quantile = (jax.random.uniform(rngs.params(), (groups, states)) + jnp.arange(states)) / states
            timescale = config.ring_max_timescale**quantile
            self.decay = nnx.Param(jnp.log(jnp.expm1(1 / timescale)))
            self.phase = nnx.Param(
                jnp.pi * jax.random.uniform(rngs.params(), (groups, states), minval=-1, maxval=1) / jnp.sqrt(timescale)
            )
        else:
            self.decay = nnx.Param(0.75 + 0.1 * jax.random.normal(rngs.params(), (groups, states)))
            self.phase = nnx.Param(0.1 * jax.random.normal(rngs.params(), (groups, states)))
        self.in_proj = complex_weight(rngs, states, width)
        self.out_proj = complex_weight(rngs, width, states)
        self.dt_proj = Linear(2 * width, 2, rngs=rngs)

    def __call__(self, x: Array, h0: Array, position: Array) -> tuple[Array, Array]:
        """x [B, S, D] and the state before it [B, G, N] to (y [B, S, D], state after it)."""
        h = self.states(x, h0, position)
        y = complex_matmul(h, self.out_proj[...])
        return jnp.swapaxes(y, 0, 1).reshape(x.shape), h[-1]

    def states(self, x: Array, h0: Array, position: Array) -> Array:
        """h of every position, time-major: [S, B, G, N]; the state starts afresh where a document does."""
        config = self.config
        dt, omega, inputs = self.inputs(x)
        starts, decay, phase = position.T == 0, jax.nn.softplus(self.decay[...]), self.phase[...]
        if config.clamp_interval:
            a = transitions(dt, omega, decay, phase, starts)
            return clamped_recurrence(a, inputs, h0, position.T, config.clamp_interval)[0]
        return selective_recurrence(dt, omega, decay, phase, inputs, h0, starts, config.scan)

    def inputs(self, x: Array) -> tuple[Array, Array, Array]:
        """(δ, ω, what enters the state) of x [B, S, D], time-major: [S, B, G] twice, [S, B, G, N]."""
        groups = jnp.swapaxes(x, 0, 1).reshape(x.shape[1], x.shape[0], self.config.num_groups, -1)
        # Clipping the exponent instead of its exponential gives the same values and keeps an overflow out of the
        # gradient, where it would become 0·inf.
        rates = jnp.exp(jnp.clip(self.dt_proj.of_parts(groups), jnp.log(1e-4), jnp.log(2.0)))
        dt, omega = rates[..., 0], rates[..., 1]
        b_x = complex_matmul(groups, self.in_proj[...])
        if self.config.input_scale == "dt":
            return dt, omega, scaled_by_group(dt, b_x)
        log_decay = -dt[..., None] * jax.nn.softplus(self.decay[...])
        return dt, omega, jnp.sqrt(-jnp.expm1(2 * log_decay)) * b_x


class Mixer(nnx.Module):
    """One mixing layer with pre-norm and residual."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        dim, mixer = config.hidden_dim, config.mixer
        self.norm_gamma = nnx.Param(jnp.ones(dim))
        self.spinor_gate = SpinorGate(dim, mixer.block_size, rngs)
        self.conv = CausalConv(dim, mixer.conv_width, rngs)
        self.activation_threshold = nnx.Param(jnp.zeros(()))
        self.ssm = SelectiveSSM(dim, mixer, rngs)
        self.out_proj = complex_weight(rngs, dim, dim)
        self.output_scale = nnx.Param(jnp.full(dim, 2.5))
        self.residual_scale = nnx.Param(jnp.asarray((2 * config.num_layers) ** -0.5))

    def __call__(
        self, x: Array, state: MixerState, position: Array, probe: Probe = unobserved
    ) -> tuple[Array, MixerState]:
        """x [B, S, D] complex and the state before it to (the same shape, the state after it)."""
        z = probe("norm", rms_norm(x, self.norm_gamma[...]))
        z = probe("spinor_gate", self.spinor_gate(z))
        z, taps = self.conv(z, state.taps, position)
        z = probe("conv", z)
        z = probe("amplitude_gate", z * one_minus_exp_neg(abs_sq(z) * jnp.exp(self.activation_threshold[...])))
        z, ssm = self.ssm(z, state.ssm, position)
        z = probe("ssm", z)
        z = probe("out_proj", complex_matmul(z, self.out_proj[...]))
        x = probe("residual", x + self.residual_scale[...] * (z * self.output_scale[...]))
        return x, MixerState(taps, ssm)
