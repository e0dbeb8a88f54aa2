"""The whole model: encoder, L mixers, L propagators, norm, readout; one code path for training and for decoding.

Every call takes the state of the past and returns the state after its tokens. A full forward pass starts from
`initial_state`; decoding is the same call with one token, so it costs O(1) and cannot drift from training.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from sem_jax.config import ModelConfig, Remat
from sem_jax.core.cayley import PreparedStep
from sem_jax.core.complex_ops import rms_norm
from sem_jax.modules.encoder import Encoder
from sem_jax.modules.mixer import Mixer, MixerState
from sem_jax.modules.propagator import Propagator, PropagatorStats
from sem_jax.modules.readout import Readout


class ModelState(NamedTuple):
    """All that is carried along the sequence; its size does not depend on how much has been read."""

    position: Array  # [B] int32, position of the next token in its document
    encoder: Array  # [sweeps, B, M]
    mixers: MixerState  # leading layer axis


class ForwardStats(NamedTuple):
    """By-products of a forward pass."""

    propagators: PropagatorStats  # each [L]
    column_share: Array  # [M], mean use of the transport columns


def stack_layers(layers: list[Any]) -> Any:
    """One module whose variables carry a leading layer axis, from modules of equal structure."""
    graphdef = nnx.split(layers[0])[0]
    states = [nnx.split(layer)[1] for layer in layers]
    return nnx.merge(graphdef, jax.tree.map(lambda *leaves: jnp.stack(leaves), *states))


def scan_layers(stacked: Any, carry: Any, inputs: Any, apply: Callable, remat: Remat) -> tuple[Any, Any]:
    """Runs apply(layer, carry, layer_inputs) -> (carry, layer_outputs) over the leading axis of a stacked module."""
    graphdef, variables = nnx.split(stacked)

    def body(carry, layer):
        layer_variables, layer_inputs = layer
        return apply(nnx.merge(graphdef, layer_variables), carry, layer_inputs)

    if remat != "none":
        body = jax.checkpoint(body, policy=_is_real_product if remat == "elementwise" else None)
    return jax.lax.scan(body, carry, (variables, inputs))


def _is_real_product(primitive: Any, *operands: Any, **_: Any) -> bool:
    # The products that cost arithmetic are real (`complex_matmul`); JAX 0.10 cannot keep complex ones.
    return primitive is jax.lax.dot_general_p and not any(jnp.iscomplexobj(operand) for operand in operands)


class SEM(nnx.Module):
    """The Signal-Entropic Model."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        self.config = config
        layers = range(config.num_layers)
        self.encoder = Encoder(config, rngs)
        self.mixers = stack_layers([Mixer(config, rngs) for _ in layers])
        self.propagators = stack_layers([Propagator(config, seed=layer) for layer in layers])
        self.final_gamma = nnx.Param(jnp.ones(config.hidden_dim))
        self.readout = Readout(config, rngs)

    def initial_state(self, batch_size: int) -> ModelState:
        """The state at the start of a document."""
        config, mixer = self.config, self.config.mixer
        dtype = self.readout.weight.dtype
        taps = (config.num_layers, batch_size, mixer.conv_width - 1, config.hidden_dim)
        ssm = (config.num_layers, batch_size, mixer.num_groups, mixer.state_dim)
        return ModelState(
            position=jnp.zeros(batch_size, jnp.int32),
            encoder=self.encoder.initial_state(batch_size),
            mixers=MixerState(jnp.zeros(taps, dtype), jnp.zeros(ssm, dtype)),
        )

    def prepare(self) -> PreparedStep:
        """What the propagators compute from their parameters alone, with a leading layer axis."""
        return scan_layers(
            self.propagators, None, None, lambda propagator, _, __: (None, propagator.prepare()), "none"
        )[1]

    def __call__(
        self,
        tokens: Array,
        state: ModelState | None = None,
        resets: Array | None = None,
        token_freqs: Array | None = None,
        prepared: PreparedStep | None = None,
    ) -> tuple[Array, ModelState, ForwardStats]:
        """The wave function that predicts the token after each position.

        Args:
          tokens: [B, S] int, in 0..V−1 (checked on the host by `sem_jax.data`).
          state: what came before; None at the start of a document.
          resets: [B, S] bool, True where a token starts a new document: convolution, SSM, encoder and position start
            afresh there. None: one document.
          token_freqs: [V], frequencies that sharpen the transport cost of rare tokens; None: not used.
          prepared: from `prepare`, for many calls with the same parameters; None: computed in this call.

        Returns:
          (psi [B, S, D] complex, state after the last token, statistics).
        """
        state = self.initial_state(tokens.shape[0]) if state is None else state
        position = document_positions(state.position, tokens.shape[1], resets)
        psi, encoder_state, column_share = self.encoder(tokens, position, state.encoder, token_freqs)
        psi, mixers = scan_layers(
            self.mixers, psi, state.mixers, lambda mixer, x, past: mixer(x, past, position), self.config.remat
        )
        psi, propagators = scan_layers(
            self.propagators,
            psi,
            prepared,
            lambda propagator, x, step: propagator(x, prepared=step),
            self.config.remat,
        )
        psi = rms_norm(psi, self.final_gamma[...])
        state = ModelState(position[:, -1] + 1, encoder_state, mixers)
        return psi, state, ForwardStats(propagators, jax.lax.stop_gradient(column_share))


def document_positions(start: Array, length: int, resets: Array | None) -> Array:
    """Position of each token in its document, [B, S], from the position [B] of the first and the resets [B, S]."""
    index = jnp.arange(length, dtype=jnp.int32)
    if resets is None:
        return start[:, None] + index
    last_reset = jax.lax.cummax(jnp.where(resets, index, -1), axis=1)
    return jnp.where(last_reset < 0, start[:, None] + index, index - last_reset)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ModelParts:
    """A model taken apart: static structure, trained parameters and fixed buffers.

    A pytree whose leaves are those of `params` and `buffers`, nested dicts of arrays. It goes whole through `jax.jit`;
    `merge` puts it together again inside.
    """

    graphdef: Any = field(metadata={"static": True})
    params: dict[str, Any]
    buffers: dict[str, Any]

    def merge(self) -> SEM:
        """The module, ready to be called."""
        return nnx.merge(self.graphdef, self.params, self.buffers)

    def replace(self, **changes: Any) -> ModelParts:
        """A copy with other parameters or buffers."""
        return replace(self, **changes)


def split_model(model: SEM) -> ModelParts:
    """Takes a model apart."""
    graphdef, *states = nnx.split(model, nnx.Param, ...)
    params, buffers = map(nnx.to_pure_dict, states)
    return ModelParts(graphdef, params, buffers)


def init_model(config: ModelConfig, seed: int) -> ModelParts:
    """A freshly initialised model; the same seed gives the same bits on the same backend."""

    @jax.jit  # one compilation instead of one for every operation
    def create(key: Array) -> ModelParts:
        # Initialisers leave weak types behind; a step returns strong ones and would be compiled again for them.
        return jax.tree.map(lambda x: x.astype(x.dtype), split_model(SEM(config, nnx.Rngs(params=key))))

    return create(jax.random.key(seed))


def abstract_model(config: ModelConfig) -> ModelParts:
    """Structure, shapes and dtypes of a model, every leaf a `jax.ShapeDtypeStruct`; no array is computed."""
    return jax.eval_shape(lambda: init_model(config, 0))


def count_parameters(params: Any) -> int:
    """Number of real parameters; a complex entry counts twice."""
    return sum(leaf.size * (2 if jnp.iscomplexobj(leaf) else 1) for leaf in jax.tree.leaves(params))
