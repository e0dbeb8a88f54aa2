"""The whole model: encoder, layers, norm, readout; one code path for training, decoding and diagnosis.

Every call takes the state of the past and returns the state after its tokens. A full forward pass starts from
`initial_state`; decoding is the same call with one token, so it costs O(1) and cannot drift from training.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from sem_jax.config import ModelConfig, Remat
from sem_jax.core.complex_ops import rms_norm
from sem_jax.core.devices import gathered
from sem_jax.modules.block import Block, Context
from sem_jax.modules.blocks import block_kinds
from sem_jax.modules.cost import Cost
from sem_jax.modules.encoder import Encoder
from sem_jax.modules.probe import Observer
from sem_jax.modules.readout import Readout


class ModelState(NamedTuple):
    """All that is carried along the sequence; its size does not depend on how much has been read."""

    position: Array  # [B] int32, position of the next token in its document
    encoder: Array  # [sweeps, B, M]
    blocks: dict[str, Any]  # by kind, with a leading layer axis


class ForwardStats(NamedTuple):
    """By-products of a forward pass, by kind of block or by group."""

    blocks: dict[str, Any]  # what the layers report, with a leading layer axis
    seen: dict[str, Any]  # what the observer kept of "encoder", of each kind of block and of "head"


def stack_layers(layers: list[Any]) -> Any:
    """One module whose variables carry a leading layer axis, from modules of equal structure."""
    graphdef = nnx.split(layers[0])[0]
    states = [nnx.split(layer)[1] for layer in layers]
    return nnx.merge(graphdef, jax.tree.map(lambda *leaves: jnp.stack(leaves), *states))


def scan_layers(
    stacked: Mapping[str, Block],
    carry: Any,
    inputs: Any,
    apply: Callable[..., tuple[Any, Any]],
    remat: Remat,
    unroll: bool = False,
) -> tuple[Any, Any]:
    """Runs apply(blocks of one depth, carry, inputs of that depth) -> (carry, outputs) through all depths.

    Args:
      stacked: by kind, modules as from `stack_layers`.
      carry: what passes from depth to depth.
      inputs: pytree of arrays with a leading layer axis.
      apply: the body.
      remat: what the backward pass recomputes.
      unroll: whether every depth is compiled by itself, or one body for all.

    Returns:
      (carry, outputs with a leading layer axis).
    """
    graphdefs = {kind: nnx.split(module)[0] for kind, module in stacked.items()}
    variables = {kind: nnx.split(module)[1] for kind, module in stacked.items()}

    def body(carry: Any, layer: tuple[Any, Any]) -> tuple[Any, Any]:
        layer_variables, layer_inputs = layer
        blocks = {kind: nnx.merge(graphdefs[kind], gathered(layer_variables[kind])) for kind in graphdefs}
        return apply(blocks, carry, layer_inputs)

    if remat != "none":
        body = jax.checkpoint(body, policy=_is_real_product if remat == "elementwise" else None)
    return jax.lax.scan(body, carry, (variables, inputs), unroll=unroll)


def _is_real_product(primitive: Any, *operands: Any, **_: Any) -> bool:
    # The products that cost arithmetic are real (`complex_matmul`); JAX 0.10 cannot keep complex ones.
    return primitive is jax.lax.dot_general_p and not any(jnp.iscomplexobj(operand) for operand in operands)


class SEM(nnx.Module):
    """The Signal-Entropic Model: encoder, the layers that the configuration names, norm and readout."""

    HEAD_PARTS: ClassVar[Mapping[str, tuple[str, ...]]] = {"final_norm": ("final_gamma",), "readout": ("readout",)}

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        self.config = config
        self.encoder = Encoder(config, rngs)
        for kind, block in block_kinds(config.blocks).items():
            setattr(self, kind, stack_layers([block(config, rngs, layer) for layer in range(config.num_layers)]))
        self.final_gamma = nnx.Param(jnp.ones(config.hidden_dim), decay=False)
        self.readout = Readout(config, rngs)

    @property
    def blocks(self) -> dict[str, Block]:
        """The stacked layers of each kind, in the order of a depth."""
        return {kind: getattr(self, kind) for kind in block_kinds(self.config.blocks)}

    @property
    def parts(self) -> dict[str, Mapping[str, tuple[str, ...]]]:
        """`Block.PARTS` of each group, in the order of the forward pass."""
        layers = {kind: block.PARTS for kind, block in self.blocks.items()}
        return {"encoder": self.encoder.PARTS, **layers, "head": self.HEAD_PARTS}

    def initial_state(self, batch_size: int) -> ModelState:
        """The state at the start of a document."""
        return self._state({kind: block.initial_state(batch_size) for kind, block in self.blocks.items()}, batch_size)

    def _state(self, blocks: dict[str, Any], batch_size: int) -> ModelState:
        """The state at the start of a document, given that of one layer of each kind."""

        def at_every_depth(x: Array) -> Array:
            return jnp.broadcast_to(x, (self.config.num_layers, *x.shape))

        return ModelState(
            position=jnp.zeros(batch_size, jnp.int32),
            encoder=self.encoder.initial_state(batch_size),
            blocks=jax.tree.map(at_every_depth, blocks),
        )

    def prepare(self) -> dict[str, Any]:
        """What the layers compute from their parameters alone, by kind, with a leading layer axis."""

        def prepare(blocks: dict[str, Block], _: None, __: None) -> tuple[None, dict[str, Any]]:
            return None, {kind: block.prepare() for kind, block in blocks.items()}

        return scan_layers(self.blocks, None, None, prepare, "none")[1]

    def __call__(
        self,
        tokens: Array,
        state: ModelState | None = None,
        resets: Array | None = None,
        token_freqs: Array | None = None,
        prepared: dict[str, Any] | None = None,
        observer: Observer | None = None,
    ) -> tuple[Array, ModelState, ForwardStats]:
        """The wave function that predicts the token after each position.

        Args:
          tokens: [B, S] int, in 0..V−1 (checked on the host by `sem_jax.data`).
          state: what came before; None at the start of a document.
          resets: [B, S] bool, True where a token starts a new document: everything that looks back starts afresh there.
            None: one document.
          token_freqs: [V], frequencies that sharpen the transport cost of rare tokens; None: not used.
          prepared: from `prepare`, for many calls with the same parameters; None: computed in this call.
          observer: gives a probe to each module; None: an ordinary pass.

        Returns:
          (psi [B, S, D] complex, state after the last token, statistics).
        """
        observer = observer or Observer()
        if state is None:
            batch = len(tokens)
            state = self._state({kind: block.first_state(batch) for kind, block in self.blocks.items()}, batch)
        context = Context(document_positions(state.position, tokens.shape[1], resets))
        seen: dict[str, Any] = {}

        probe = observer.probe(observer.slots.get("encoder"))
        psi, encoder_state = self.encoder(tokens, state.encoder, context, token_freqs, probe)
        seen["encoder"] = observer.seen(probe, self.encoder, state.encoder, context)

        def at_one_depth(blocks: dict[str, Block], x: Array, inputs: dict[str, tuple[Any, Any, Any]]) -> Any:
            outputs = {}
            for kind, block in blocks.items():
                past, ready, slots = inputs[kind]
                probe = observer.probe(slots)
                x, new, stats = block(x, past, context, probe, ready)
                outputs[kind] = new, stats, observer.seen(probe, block, past, context)
            return x, outputs

        outputs: dict[str, Any] = {}
        for kinds in self.passes():
            inputs = {
                kind: (state.blocks[kind], prepared and prepared[kind], observer.slots.get(kind)) for kind in kinds
            }
            psi, found = scan_layers(
                kinds, psi, inputs, at_one_depth, self.config.remat, unroll=not self.config.scan_layers
            )
            outputs |= found
        seen |= {kind: output[2] for kind, output in outputs.items()}

        probe = observer.probe(observer.slots.get("head"))
        psi = probe("final_norm", rms_norm(psi, self.final_gamma[...]))
        seen["head"] = observer.seen(probe, None, None, context)
        after = ModelState(context.position[:, -1] + 1, encoder_state, {kind: o[0] for kind, o in outputs.items()})
        return psi, after, ForwardStats({kind: o[1] for kind, o in outputs.items()}, seen)

    def passes(self) -> list[dict[str, Block]]:
        """The stacked layers that go through all depths together: each kind by itself, or all of them."""
        blocks = self.blocks
        return [blocks] if self.config.layout == "interleaved" else [{kind: block} for kind, block in blocks.items()]

    def costs(self, tokens: int) -> dict[str, Cost]:
        """Arithmetic and traffic of a training step over so many tokens, by part, all layers together."""
        depth = self.config.num_layers
        layers: dict[str, Cost] = {}
        for block in self.blocks.values():
            layers |= {name: cost.times(depth) for name, cost in block.costs(tokens).items()}
        return self.encoder.costs(tokens) | layers | self.readout.costs(tokens)


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

    def decays(self) -> dict[str, Any]:
        """Which parameters weight decay touches: a tree of bools with the structure of `params`.

        A parameter decays unless its module made it as `nnx.Param(..., decay=False)`.
        """
        variables = nnx.to_flat_state(nnx.split(self.merge(), nnx.Param, ...)[1])
        leaves = [variable.get_metadata().get("decay", True) for _, variable in variables]
        return jax.tree.unflatten(jax.tree.structure(self.params), leaves)

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
