"""Parts of the model that lack something of the default's, or have it in another form: what `variants.py` compares."""

from __future__ import annotations

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from sem_jax.config import MixerConfig, ModelConfig
from sem_jax.core import coherent
from sem_jax.core.complex_ops import complex_matmul, complex_normal, rms_norm
from sem_jax.core.duality import selective_state_space
from sem_jax.modules.block import Block, Context
from sem_jax.modules.encoder import Encoder
from sem_jax.modules.linear import Linear, complex_weight
from sem_jax.modules.mixer import CausalConv
from sem_jax.modules.model import SEM
from sem_jax.modules.probe import Probe, unobserved
from sem_jax.modules.readout import Readout
from sem_jax.modules.selective_mixer import InputProjection, SelectiveMixer, SelectiveSSM


class NoInputProjection(SelectiveMixer):
    """Convolution and output gate read the normalised wave itself."""

    class Identity(InputProjection):
        def __init__(self, *unused: Any) -> None:
            pass

        def __call__(self, x: Array) -> Array:
            return x

    INPUT: ClassVar = ("in_proj", Identity)


class NoConvolution(SelectiveMixer):
    """The state space reads what the input projection gives out."""

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

    def gate_output(self, z: Array, entering: Array, probe: Probe) -> Array:
        del entering
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


def summed(ssm: SelectiveSSM, x: Array, entering: Array, h0: Array | None, position: Array) -> tuple[Array, Array]:
    """(y [B, S, H, P], the state after it): `entering` [B, S, H, P] enters the states, all else is read from x."""
    q, k = ssm.queries_and_keys(x)
    dt, omega = ssm.step_sizes(x)
    decay, phase = jax.nn.softplus(ssm.decay[...]), ssm.phase[...]
    return selective_state_space(q, k, entering, dt, omega, decay, phase, h0, position == 0, ssm.config.scan)


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
            dt, _ = self.step_sizes(x)
            share = jax.nn.sigmoid(self.share.of_parts(x))
            from_next = jnp.pad(((1 - share) * dt)[:, 1:], ((0, 0), (0, 1), (0, 0)))
            by_head = x.reshape(*x.shape[:2], self.config.num_heads, -1)
            y, h = summed(self, x, by_head * (share + from_next / dt)[..., None], h0, position)
            match = jnp.mean(k * jnp.conj(q), axis=-1)[..., None, None]
            y = y - match * from_next[..., None] * by_head
            return y.reshape(x.shape) + self.skip[...] * x, h


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


class FirstValues(SelectiveMixer):
    """What enters the states is a mean of the layer's own values and of the first layer's (arXiv:2410.17897).

    The share of each channel is learned, from a half on. It needs `unrolled` in the place of `scan_layers`, which
    cannot hand a layer anything but the wave.
    """

    class SSM(SelectiveSSM):
        first: ClassVar[list[tuple[Array, Array]]] = []  # (the pass's positions, its first layer's values)

        def __init__(self, dim: int, config: MixerConfig, rngs: nnx.Rngs):
            super().__init__(dim, config, rngs)
            self.share = nnx.Param(jnp.full(dim, 0.5), decay=False)

        def values(self, x: Array, position: Array) -> Array:
            """Of x [B, S, D]; in the first layer of a pass x itself."""
            if not self.first or self.first[-1][0] is not position:
                self.first[:] = [(position, x)]
            return x + self.share[...] * (self.first[-1][1] - x)

        def __call__(self, x: Array, h0: Array | None, position: Array) -> tuple[Array, Array]:
            values = self.values(x, position).reshape(*x.shape[:2], self.config.num_heads, -1)
            y, h = summed(self, x, values, h0, position)
            return y.reshape(x.shape) + self.skip[...] * x, h


def unrolled(stacked: Any, carry: Any, inputs: Any, apply: Any, remat: str, unroll: bool) -> tuple[Any, Any]:
    """`scan_layers` as a loop of Python."""
    del remat, unroll
    split = {kind: nnx.split(module) for kind, module in stacked.items()}
    along_layers = {kind: variables for kind, (_, variables) in split.items()}, inputs
    outputs = []
    for layer in range(len(jax.tree.leaves(along_layers)[0])):
        variables, given = jax.tree.map(lambda x, layer=layer: x[layer], along_layers)
        blocks = {kind: nnx.merge(graphdef, variables[kind]) for kind, (graphdef, _) in split.items()}
        carry, output = apply(blocks, carry, given)
        outputs.append(output)
    return carry, jax.tree.map(lambda *x: jnp.stack(x), *outputs)


class ComplexEmbedding(Encoder):
    """Every token starts with a phase of its own in each channel."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        super().__init__(config, rngs)
        self.embedding = nnx.Param(complex_normal(rngs.params(), (config.vocab_size, config.hidden_dim), 1.0))


class Pairs(Encoder):
    """Beside each token's embedding that of the pair which it makes with the token before it: a_v·b_u in each channel.

    For whole sequences only: the state does not hold the last token.
    """

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        super().__init__(config, rngs)
        shape = (config.vocab_size, config.hidden_dim)
        self.second = nnx.Param(complex_normal(rngs.params(), shape, 1.0))
        self.first = nnx.Param(complex_normal(rngs.params(), shape, 0.25))

    def __call__(
        self,
        tokens: Array,
        state: Array,
        context: Context,
        token_freqs: Array | None = None,
        probe: Probe = unobserved,
    ) -> tuple[Array, Array]:
        x, state = super().__call__(tokens, state, context, token_freqs, probe)
        before = jnp.pad(tokens[:, :-1], ((0, 0), (1, 0)))
        pairs = self.second[...][tokens] * self.first[...][before]
        return x + jnp.where(context.position[..., None] > 0, pairs, 0), state


class Tied(SEM):
    """Complex embeddings that are also the readout, conjugated, but for a gain of each channel."""

    class Readout(Readout):
        def __init__(self, config: ModelConfig, embedding: nnx.Param):
            self.likelihood, self.floor = config.likelihood, config.born_floor
            self.embedding = embedding
            dim = config.hidden_dim
            self.gain = nnx.Param(jnp.full(dim, 0.1 * dim**-0.5), decay=False)
            self.bias = nnx.Param(jnp.zeros(config.vocab_size), decay=False)

        @property
        def weight(self) -> Array:
            return self.gain[...] * self.embedding[...].conj()

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        super().__init__(config, rngs)
        self.encoder = ComplexEmbedding(config, rngs)
        self.readout = self.Readout(config, self.encoder.embedding)


def no_norm(z: Array, gamma: Array) -> Array:
    """A gain and no norm, in the place of `rms_norm`."""
    return z * gamma


class FullScale(Readout):
    """Logits of order one at the start."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        super().__init__(config, rngs)
        self.weight = complex_weight(rngs, config.vocab_size, config.hidden_dim)


class Capped(Readout):
    """Logits c·tanh(ℓ/c) with c = 15 (Gemma 2, arXiv:2408.00118), over an array of all tokens and the vocabulary."""

    CAP: ClassVar = 15.0

    def capped(self, psi: Array) -> tuple[Array, Array]:
        """(log P, log Z) of every token: [..., V] and [...]."""
        log_p, log_z = coherent.log_probs(psi, self.weight[...], self.bias[...])
        logits = self.CAP * jnp.tanh((log_p + log_z[..., None]) / self.CAP)
        log_z = jax.nn.logsumexp(logits, axis=-1)
        return logits - log_z[..., None], log_z

    def log_probs(self, psi: Array) -> Array:
        return self.capped(psi)[0]

    def target_log_prob(self, psi: Array, targets: Array) -> tuple[Array, Array]:
        log_p, log_z = self.capped(psi)
        return jnp.take_along_axis(log_p, targets[..., None], axis=-1)[..., 0], log_z
