"""What a layer is: the protocol of every block between encoder and head."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

from flax import nnx
from jax import Array

from sem_jax.config import ModelConfig
from sem_jax.modules.cost import Cost
from sem_jax.modules.probe import Probe, unobserved


class Context(NamedTuple):
    """What every module of a pass may read besides the wave."""

    position: Array  # [B, S] int32, position of each token in its document; 0 where the past ends


class Block(nnx.Module):
    """One layer, a map of waves [B, S, D] that owns everything the rest of the package needs to know of it.

    A kind of block is one file with a subclass and one line in `sem_jax.modules.blocks`; docs/architecture.md adds one
    as an example. Layers of one kind are stacked: each parameter gets a leading axis [L], and the model, `jax.lax.scan`
    over that axis, takes state, statistics and what is prepared along it.

    Parameters are `nnx.Param(value, decay=False)` where weight decay has no business (gains, biases, rates); without
    that they decay.

    Attributes:
      PARTS: the names under which `__call__` shows its parts to the probe, in their order, each with the attributes of
        the block that hold the part's parameters. What `sem_jax.diagnosis` tells of a layer, it tells by part.
      RESIDUAL: parts that add to the layer's input, so that their own input is that of the layer.
    """

    PARTS: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    RESIDUAL: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs, layer: int):
        """Fresh parameters.

        Args:
          config: sizes of the model and of its blocks.
          rngs: stream "params" for initial values.
          layer: depth, counted from 0.
        """
        raise TypeError(f"{type(self).__name__} is a protocol; make one of its subclasses")

    def initial_state(self, batch_size: int) -> Any:
        """What the layer remembers before a document, a pytree of arrays [B, ...]; () where it never looks back."""
        del batch_size
        return ()

    def first_state(self, batch_size: int) -> Any:
        """`initial_state` for a pass that begins a document: None may stand for zeros that need no arithmetic."""
        return self.initial_state(batch_size)

    def prepare(self) -> Any:
        """What depends on the parameters alone and may be computed once for many calls; None: nothing."""
        return None

    def __call__(
        self, x: Array, state: Any, context: Context, probe: Probe = unobserved, prepared: Any = None
    ) -> tuple[Array, Any, Any]:
        """A pass over some tokens.

        Args:
          x: [B, S, D] complex.
          state: as from `initial_state`, or as the call for the tokens before these returned it; at the start of
            a document as from `first_state`.
          context: of the pass.
          probe: sees the parts.
          prepared: as from `prepare`; None: it is computed here.

        Returns:
          (the wave after the layer, the state after the tokens, statistics that a training step reports or ()).
        """
        raise NotImplementedError

    def inspect(self, values: Mapping[str, Array], state: Any, context: Context) -> Any:
        """What a diagnosis wants to know beyond the statistics that all parts have in common.

        Args:
          values: outputs of the parts, by name.
          state: before the pass, as in `__call__`.
          context: of the pass.

        Returns:
          A NamedTuple of scalars and arrays, or ().
        """
        del values, state, context
        return ()

    def costs(self, tokens: int) -> dict[str, Cost]:
        """Arithmetic and traffic of one layer over so many tokens, by part; names below a part as "ssm/scan"."""
        del tokens
        return {}
