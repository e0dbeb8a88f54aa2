"""The selective mixer: what enters the state, what is read from it, and how long it stays depend on the token."""

from __future__ import annotations

from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from sem_jax.config import MixerConfig, ModelConfig
from sem_jax.core.complex_ops import abs_sq, complex_matmul, rms_norm
from sem_jax.core.duality import CHUNK, selective_state_space
from sem_jax.modules.cost import COMPLEX, COMPLEX_MATMUL, COMPLEX_MULTIPLY_ADD, MULTIPLY_ADD, Cost, product
from sem_jax.modules.linear import Linear, complex_weight
from sem_jax.modules.mixer import Mixer
from sem_jax.modules.probe import Probe


class SelectiveSSM(nnx.Module):
    """A complex selective state space with H heads of P = D/H channels and N states (docs/mathematics.md, section 7).

    h_t = α_t·h_{t−1} + k_t (δ_t x_t)ᵀ, y_t = h_tᵀ·conj(q_t)/N + d·x_t: queries, keys, δ and ω are read from the input.
    """

    def __init__(self, dim: int, config: MixerConfig, rngs: nnx.Rngs):
        self.config = config
        heads, states = config.num_heads, config.state_dim
        mimetic = config.selective_init == "mimetic"
        self.qk_proj = complex_weight(rngs, 2 * states, dim)
        if mimetic:
            # A query begins as its token's key, so that a token finds its like from the first step on.
            key = self.qk_proj[..., :states, :]
            self.qk_proj[...] = jnp.concatenate([key, key])
        # At 1, as in Mamba-3, every query matches every key, and a head sums up its past, whatever it was.
        self.qk_bias = nnx.Param(jnp.full((2, states), 0.0 if mimetic else 1.0), decay=False)
        self.rates = Linear(2 * dim, 2 * heads, rngs=rngs)  # (u, w) of δ and ω: `step_sizes`
        # A key that turns looks different from every distance: every second head stands still, forgets slowly and looks
        # things up, the others turn and count.
        still = mimetic & (jnp.arange(heads) % 2 == 0)
        slowest, fastest = jnp.log(jnp.where(still, 0.01, 0.02)), jnp.log(jnp.where(still, 0.1, 0.7))
        log_decay = jax.random.uniform(rngs.params(), (heads,), minval=slowest, maxval=fastest)
        self.decay = nnx.Param(jnp.log(jnp.expm1(jnp.exp(log_decay))), decay=False)
        phase = jax.random.uniform(rngs.params(), (heads, states), minval=-1, maxval=1)
        self.phase = nnx.Param(jnp.where(still[:, None], 0, phase), decay=False)
        self.skip = nnx.Param(jnp.ones(dim), decay=False)

    def initial_state(self, batch_size: int) -> Array:
        """[B, H, N, P], zero."""
        heads, states = self.phase.shape[-2:]
        shape = (batch_size, heads, states, self.skip.shape[-1] // heads)
        return jnp.zeros(shape, self.qk_proj.dtype)

    def __call__(self, x: Array, h0: Array | None, position: Array) -> tuple[Array, Array]:
        """x [B, S, D] and the state before it (None: zero) to (y [B, S, D], the state after it)."""
        q, k = self.queries_and_keys(x)
        dt, omega = self.step_sizes(x)
        by_head = x.reshape(*x.shape[:2], self.config.num_heads, -1)
        decay, phase = jax.nn.softplus(self.decay[...]), self.phase[...]
        y, h = selective_state_space(q, k, by_head, dt, omega, decay, phase, h0, position == 0, self.config.scan)
        return y.reshape(x.shape) + self.skip[...] * x, h

    def memory(self, x: Array, h0: Array | None, position: Array) -> tuple[Array, Array]:
        """(largest |α| over all positions, largest |h| after the last one)."""
        dt, _ = self.step_sizes(x)
        _, h = self(x, h0, position)
        return jnp.exp(-jnp.min(dt * jax.nn.softplus(self.decay[...]))), jnp.max(jnp.abs(h))

    def queries_and_keys(self, x: Array) -> tuple[Array, Array]:
        """q and k [B, S, N], each of mean power 1 but for its bias."""
        qk = complex_matmul(x, self.qk_proj[...])
        qk = qk.reshape(*x.shape[:-1], 2, -1)
        power = jnp.mean(abs_sq(qk), axis=-1, keepdims=True)
        qk = qk * jax.lax.rsqrt(power + 1e-6) + self.qk_bias[...]
        return qk[..., 0, :], qk[..., 1, :]

    def step_sizes(self, x: Array) -> tuple[Array, Array]:
        """δ > 0 and ω [B, S, H]; 1 each where the input says nothing.

        The gradient of φ grows with the sum of all ω that a state remembers. In a large model ω grows, and without a
        bound the phases of a state that forgets slowly become chaotic.
        """
        u, w = jnp.split(self.rates.of_parts(x), 2, axis=-1)
        if self.config.rotation == "bounded":
            widest = 2 * jnp.pi  # every state of phase 1/2 or more can still be turned by any angle
            w = widest * jnp.tanh(w / widest)
        return jax.nn.softplus(u + jnp.log(jnp.expm1(1.0))), 1 + w

    def costs(self, tokens: int, dim: int) -> dict[str, Cost]:
        """Arithmetic and traffic over so many tokens of D channels, in chunks."""
        heads, states = self.phase.shape[-2:]
        wave, pairs = COMPLEX * tokens * dim, COMPLEX * tokens * states * 2
        inputs = COMPLEX_MATMUL * dim * 2 * states + MULTIPLY_ADD * 2 * dim * 2 * heads
        scores = COMPLEX_MULTIPLY_ADD * CHUNK * heads * states + COMPLEX_MULTIPLY_ADD * CHUNK * dim
        between = 2 * COMPLEX_MULTIPLY_ADD * dim * states
        return {
            "ssm/inputs": product(tokens * inputs, wave, pairs),
            "ssm/scan": product(tokens * (scores + between), wave + pairs, wave),
        }


class InputProjection(nnx.Module):
    """z = W·x, W complex [D, D]."""

    def __init__(self, dim: int, config: MixerConfig, rngs: nnx.Rngs):
        del config
        self.weight = complex_weight(rngs, dim, dim)

    def __call__(self, x: Array) -> Array:
        """[B, S, D] complex to the same."""
        return complex_matmul(x, self.weight[...])

    def cost(self, tokens: int) -> Cost:
        """Arithmetic and traffic over so many tokens."""
        dim = self.weight.shape[-1]
        wave = COMPLEX * tokens * dim
        return product(tokens * COMPLEX_MATMUL * dim * dim, wave, wave)


class SelectiveMixer(Mixer):
    """A mixer with the selective state space, between an input projection and an output gate.

    The gate is y·silu(W_o [Re z; Im z] + b), z what the input projection gives out, and y the state space's output, or
    that over its RMS. There is neither spinor gate nor amplitude gate: in the place of the one a plain complex matrix
    of as many parameters learns more, and beside an output gate the other costs more than it gives (docs/results.md).
    """

    PARTS: ClassVar = {
        "norm": ("norm_gamma",),
        "in_proj": ("in_proj",),
        "conv": ("conv",),
        "ssm": ("ssm",),
        "output_gate": ("output_gate",),
        "out_proj": ("out_proj",),
        "residual": ("output_scale", "residual_scale"),
    }
    INPUT: ClassVar = ("in_proj", InputProjection)
    SSM: ClassVar = SelectiveSSM

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs, layer: int):
        super().__init__(config, rngs, layer)
        dim, self.output_norm = config.hidden_dim, config.mixer.output_norm
        self.output_gate = Linear(2 * dim, dim, bias_init=1.0, rngs=rngs)
        if config.mixer.selective_init == "mimetic" and config.mixer.conv_width > 1:
            # A value is asked for by the token before it, its key. Seen by equal taps, that token looks to the value as
            # it will look to itself when it asks, and the query that is its key finds the value's.
            kernel = self.conv.kernel[...]
            self.conv.kernel[...] = kernel.at[-2].set(kernel[-1])

    def gate_output(self, z: Array, entering: Array, probe: Probe) -> Array:
        """z·silu(W_o [Re z'; Im z'] + b), z' what the convolution was given, and z of mean power 1 if so configured."""
        if self.output_norm:
            z = rms_norm(z, jnp.ones(z.shape[-1]))
        return probe("output_gate", z * jax.nn.silu(self.output_gate.of_parts(entering)))

    def costs(self, tokens: int) -> dict[str, Cost]:
        """See `Block`."""
        dim = self.out_proj.shape[-1]
        wave = COMPLEX * tokens * dim
        gate = {"output_gate": product(tokens * MULTIPLY_ADD * 2 * dim * dim, 2 * wave, wave)}
        return super().costs(tokens) | gate


class SpinorSelectiveMixer(SelectiveMixer):
    """The same with the reference's spinor gate in the place of the input projection."""

    PARTS: ClassVar = {"norm": ("norm_gamma",), "spinor_gate": ("spinor_gate",)} | {
        name: attributes for name, attributes in SelectiveMixer.PARTS.items() if name != "in_proj"
    }
    INPUT: ClassVar = Mixer.INPUT
