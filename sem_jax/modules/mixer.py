"""The sequence mixer of the reference: spinor gate, causal convolution, amplitude gate and complex state space."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from sem_jax.config import MixerConfig, ModelConfig
from sem_jax.core.causal_conv import causal_conv
from sem_jax.core.complex_ops import abs_sq, complex_matmul, complex_normal, one_minus_exp_neg, rms_norm, stored
from sem_jax.core.scan import clamped_recurrence
from sem_jax.core.selective import scaled_by_group, selective_recurrence, transitions
from sem_jax.modules.block import Block, Context
from sem_jax.modules.cost import COMPLEX, COMPLEX_MATMUL, COMPLEX_MULTIPLY_ADD, MULTIPLY_ADD, Cost, product
from sem_jax.modules.linear import Linear, complex_weight
from sem_jax.modules.probe import Probe, unobserved


class MixerState(NamedTuple):
    """What one layer remembers of the past."""

    taps: Array  # [B, K-1, D] complex, the last inputs of the convolution
    ssm: Array | None  # complex; [B, G, N] of the fixed state space, [B, H, N, P] of the selective one; None: zero


class SpinorGate(nnx.Module):
    """x + g·(Rx − x): a gated block-diagonal complex rotation (docs/mathematics.md, section 2, Mixer 1)."""

    def __init__(self, dim: int, config: MixerConfig, rngs: nnx.Rngs):
        size = config.block_size
        rotation = complex_normal(rngs.params(), (dim // size, size, size), 0.02**2 * 2)
        self.rotation = nnx.Param(jnp.eye(size) + rotation)
        self.gate_proj = Linear(2 * dim, dim, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        """[B, S, D] complex to the same."""
        blocks = self.rotation[...]
        # Blocks are too small for the split product of `complex_matmul` to pay.
        rotated = jnp.einsum("...ni,noi->...no", x.reshape(*x.shape[:-1], *blocks.shape[:2]), blocks).reshape(x.shape)
        return stored(lambda x, rotated, gate: x + gate * (rotated - x), x, rotated, self.gate(x))

    def gate(self, x: Array) -> Array:
        """g in 0..1, real [B, S, D]: how far each channel is rotated."""
        return jax.nn.sigmoid(1.7015 * self.gate_proj.of_parts(x))

    def cost(self, tokens: int) -> Cost:
        """Arithmetic and traffic over so many tokens."""
        dim = self.gate_proj.bias.shape[-1]
        wave = COMPLEX * tokens * dim
        each = MULTIPLY_ADD * 2 * dim + COMPLEX_MULTIPLY_ADD * self.rotation.shape[-1]
        return product(tokens * dim * each, wave, wave)


class CausalConv(nnx.Module):
    """Depthwise causal convolution, a real 2x2 kernel on (re, im) per tap and channel (docs/mathematics.md, Mixer 2).

    The general 2x2 kernel is widely linear: it can treat a wave and its conjugate differently.
    """

    def __init__(self, dim: int, width: int, rngs: nnx.Rngs):
        bound = (2 * width) ** -0.5
        shape = (width, dim, 2, 2)  # tap (the last is the present), channel, out part, in part
        self.kernel = nnx.Param(jax.random.uniform(rngs.params(), shape, minval=-bound, maxval=bound))
        self.bias = nnx.Param(jnp.zeros((dim, 2)), decay=False)

    def __call__(self, x: Array, taps: Array, position: Array) -> tuple[Array, Array]:
        """Convolves x [B, S, D] after the K−1 inputs `taps`; taps from before a document's start do not count."""
        extended = jnp.concatenate([taps, x], axis=1)
        y = causal_conv(extended, self.kernel[...], self.bias[...], position)
        return y, extended[:, x.shape[1] :]


class FixedSSM(nnx.Module):
    """Complex diagonal state space on G contiguous groups of channels (docs/mathematics.md, section 2, Mixer 4).

    h_t = a_t·h_{t−1} + δ_t·(B x_t), y = C h, a = exp(−δ·softplus(A))·exp(iωφ), with (δ, ω) read from the input.
    """

    def __init__(self, dim: int, config: MixerConfig, rngs: nnx.Rngs):
        self.config = config
        groups, states, width = config.num_groups, config.state_dim, dim // config.num_groups
        if config.ssm_init == "ring":
            # Time constants spread evenly in log time, phases around the circle (LRU, Orvieto et al., 2023).
            quantile = (jax.random.uniform(rngs.params(), (groups, states)) + jnp.arange(states)) / states
            timescale = config.ring_max_timescale**quantile
            decay = jnp.log(jnp.expm1(1 / timescale))
            phase = jnp.pi * jax.random.uniform(rngs.params(), (groups, states), minval=-1, maxval=1)
            phase = phase / jnp.sqrt(timescale)
        else:
            decay = 0.75 + 0.1 * jax.random.normal(rngs.params(), (groups, states))
            phase = 0.1 * jax.random.normal(rngs.params(), (groups, states))
        # Their zero is a particular time constant and not the absence of one: weight decay has no business with them.
        self.decay = nnx.Param(decay, decay=False)
        self.phase = nnx.Param(phase, decay=False)
        self.in_proj = complex_weight(rngs, states, width)
        self.out_proj = complex_weight(rngs, width, states)
        self.dt_proj = Linear(2 * width, 2, rngs=rngs)

    def initial_state(self, batch_size: int) -> Array:
        """[B, G, N], zero."""
        return jnp.zeros((batch_size, *self.decay.shape[-2:]), self.in_proj.dtype)

    def __call__(self, x: Array, h0: Array | None, position: Array) -> tuple[Array, Array]:
        """x [B, S, D] and the state before it [B, G, N] (None: zero) to (y [B, S, D], state after it)."""
        h = self.states(x, h0, position)
        y = complex_matmul(h, self.out_proj[...])
        return jnp.swapaxes(y, 0, 1).reshape(x.shape), h[-1]

    def states(self, x: Array, h0: Array | None, position: Array) -> Array:
        """h of every position, time-major: [S, B, G, N]; the state starts afresh where a document does."""
        config = self.config
        h0 = self.initial_state(len(x)) if h0 is None else h0
        dt, omega, inputs = self.inputs(x)
        starts, decay, phase = position.T == 0, jax.nn.softplus(self.decay[...]), self.phase[...]
        if config.clamp_interval:
            a = transitions(dt, omega, decay, phase, starts)
            return clamped_recurrence(a, inputs, h0, position.T, config.clamp_interval)[0]
        return selective_recurrence(dt, omega, decay, phase, inputs, h0, starts, config.scan)

    def memory(self, x: Array, h0: Array | None, position: Array) -> tuple[Array, Array]:
        """(largest |a|, largest |h|) over all positions."""
        dt, omega, _ = self.inputs(x)
        a = transitions(dt, omega, jax.nn.softplus(self.decay[...]), self.phase[...], position.T == 0)
        return jnp.max(jnp.abs(a)), jnp.max(jnp.abs(self.states(x, h0, position)))

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

    def costs(self, tokens: int, dim: int) -> dict[str, Cost]:
        """Arithmetic and traffic over so many tokens of D channels."""
        groups, states = self.decay.shape[-2:]
        wave, memory = COMPLEX * tokens * dim, COMPLEX * tokens * groups * states
        step_sizes = MULTIPLY_ADD * 2 * (dim // groups) * 2 * groups
        projection = COMPLEX_MATMUL * dim * states
        return {
            "ssm/inputs": product(tokens * (step_sizes + projection), wave, 2 * memory),
            "ssm/scan": product(tokens * COMPLEX_MULTIPLY_ADD * groups * states, 2 * memory, memory),
            "ssm/output": product(tokens * projection, memory, wave),
        }


class MixerStats(NamedTuple):
    """Gates and memory of one mixer; None: it has no spinor gate."""

    gate_mean: Array | None
    gate_saturated: Array | None  # share of the spinor gate's entries outside 0.01..0.99
    decay: Array  # largest |a|
    state: Array  # largest |h|


class Mixer(Block):
    """One mixing layer with pre-norm and residual (docs/mathematics.md, section 2, Mixer).

    A subclass names the part that reads the normalised wave, its `INPUT`, and has no amplitude gate if its `PARTS` lack
    it.
    """

    PARTS: ClassVar = {
        "norm": ("norm_gamma",),
        "spinor_gate": ("spinor_gate",),
        "conv": ("conv",),
        "amplitude_gate": ("activation_threshold",),
        "ssm": ("ssm",),
        "out_proj": ("out_proj",),
        "residual": ("output_scale", "residual_scale"),
    }
    RESIDUAL: ClassVar = frozenset({"residual"})
    INPUT: ClassVar[tuple[str, Any]] = ("spinor_gate", SpinorGate)
    SSM: ClassVar[Any] = FixedSSM

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs, layer: int):
        del layer  # all depths begin alike
        dim, mixer = config.hidden_dim, config.mixer
        self.norm_gamma = nnx.Param(jnp.ones(dim), decay=False)
        name, kind = self.INPUT
        setattr(self, name, kind(dim, mixer, rngs))
        self.conv = CausalConv(dim, mixer.conv_width, rngs)
        if "amplitude_gate" in self.PARTS:
            self.activation_threshold = nnx.Param(jnp.zeros(()), decay=False)
        self.ssm = self.SSM(dim, mixer, rngs)
        self.out_proj = complex_weight(rngs, dim, dim)
        self.output_scale = nnx.Param(jnp.full(dim, 2.5), decay=False)
        self.residual_scale = nnx.Param(jnp.asarray((2 * config.num_layers) ** -0.5), decay=False)

    def initial_state(self, batch_size: int) -> MixerState:
        """See `Block`."""
        dtype = self.out_proj.dtype
        taps = (batch_size, self.conv.kernel.shape[-4] - 1, self.out_proj.shape[-1])
        return MixerState(jnp.zeros(taps, dtype), self.ssm.initial_state(batch_size))

    def first_state(self, batch_size: int) -> MixerState:
        """See `Block`."""
        return self.initial_state(batch_size)._replace(ssm=None)

    def __call__(
        self, x: Array, state: MixerState, context: Context, probe: Probe = unobserved, prepared: None = None
    ) -> tuple[Array, MixerState, tuple[()]]:
        """See `Block`."""
        del prepared
        entering = probe(self.INPUT[0], self.input(probe("norm", self.norm(x))))
        z, taps = self.conv(entering, state.taps, context.position)
        z = probe("conv", z)
        if "amplitude_gate" in self.PARTS:
            z = probe("amplitude_gate", self.amplitude_gate(z))
        z, ssm = self.ssm(z, state.ssm, context.position)
        z = self.gate_output(probe("ssm", z), entering, probe)
        z = probe("out_proj", complex_matmul(z, self.out_proj[...]))
        return probe("residual", self.residual(x, z)), MixerState(taps, ssm), ()

    @property
    def input(self) -> Any:
        """The part that `INPUT` names."""
        return getattr(self, self.INPUT[0])

    def norm(self, x: Array) -> Array:
        """The layer's input, normalised."""
        return rms_norm(x, self.norm_gamma[...])

    def amplitude_gate(self, z: Array) -> Array:
        """z·(1 − exp(−|z|²·e^θ)): small amplitudes are let through less (docs/mathematics.md, section 2, Mixer 3)."""
        sharpness = jnp.exp(self.activation_threshold[...])
        return stored(lambda z: z * one_minus_exp_neg(abs_sq(z) * sharpness), z)

    def gate_output(self, z: Array, entering: Array, probe: Probe) -> Array:
        """What the state space gives out, before it is projected: all of it, whatever the convolution was given."""
        del entering, probe
        return z

    def residual(self, x: Array, z: Array) -> Array:
        """x + ρ·z·s of the layer's input x and what its parts made of it."""
        return x + self.residual_scale[...] * (z * self.output_scale[...])

    def inspect(self, values: Mapping[str, Array], state: MixerState, context: Context) -> MixerStats:
        """See `Block`."""
        memory = self.ssm.memory(values.get("amplitude_gate", values["conv"]), state.ssm, context.position)
        if not isinstance(self.input, SpinorGate):
            return MixerStats(None, None, *memory)
        gate = self.input.gate(values["norm"])
        saturated = jnp.mean(((gate < 0.01) | (gate > 0.99)).astype(gate.dtype))
        return MixerStats(jnp.mean(gate), saturated, *memory)

    def costs(self, tokens: int) -> dict[str, Cost]:
        """See `Block`."""
        dim = self.out_proj.shape[-1]
        wave = COMPLEX * tokens * dim
        taps = self.conv.kernel.shape[-4]
        return {
            "norm": Cost(0, 0, wave, wave),
            self.INPUT[0]: self.input.cost(tokens),
            "conv": product(tokens * MULTIPLY_ADD * 4 * taps * dim, wave, wave),
            **({"amplitude_gate": Cost(0, 0, wave, wave)} if "amplitude_gate" in self.PARTS else {}),
            **self.ssm.costs(tokens, dim),
            "out_proj": product(tokens * COMPLEX_MATMUL * dim * dim, 2 * wave, wave),
        }
