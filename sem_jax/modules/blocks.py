"""The kinds of layers that `config.model.blocks` can name."""

from __future__ import annotations

from collections.abc import Callable

from flax import nnx

from sem_jax.config import ConfigError, ModelConfig
from sem_jax.modules.block import Block
from sem_jax.modules.mixer import Mixer
from sem_jax.modules.propagator import Propagator
from sem_jax.modules.selective_mixer import SelectiveMixer, SpinorSelectiveMixer


def mixer(config: ModelConfig, rngs: nnx.Rngs, layer: int) -> Mixer:
    """The mixer that `config.mixer` names."""
    selective = {"projection": SelectiveMixer, "spinor_gate": SpinorSelectiveMixer}
    kind = selective[config.mixer.input_map] if config.mixer.kind == "selective" else Mixer
    return kind(config, rngs, layer)


BLOCKS: dict[str, Callable[[ModelConfig, nnx.Rngs, int], Block]] = {
    "mixers": mixer,
    "propagators": Propagator,
}


def block_kinds(names: str) -> dict[str, Callable[[ModelConfig, nnx.Rngs, int], Block]]:
    """The kinds that a text such as "mixers,propagators" names, in its order.

    Raises:
      ConfigError: a name is unknown or comes twice, or there is none.
    """
    kinds = [name.strip() for name in names.split(",")]
    for kind in kinds:
        if kind not in BLOCKS:
            raise ConfigError(f"config.model.blocks names {kind!r}, which is none of {', '.join(BLOCKS)}")
    if len(set(kinds)) < len(kinds):
        raise ConfigError(f"config.model.blocks = {names} names a kind of layer twice; each depth has one of a kind")
    return {kind: BLOCKS[kind] for kind in kinds}
