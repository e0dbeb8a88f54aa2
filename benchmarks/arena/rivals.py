"""The rivals by name, and how one of them takes the place of the package's own model."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any
from unittest import mock

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from arena.gpt import GPT
from arena.gru import GRU
from arena.mamba2 import Mamba2
from arena.power import PowerSEM
from arena.real import RealModel
from arena.real_sem import RealMixer
from sem_jax.config import MixerConfig, ModelConfig
from sem_jax.data import Batch
from sem_jax.modules import model
from sem_jax.modules.blocks import BLOCKS
from sem_jax.modules.model import SEM
from sem_jax.modules.selective_mixer import SelectiveMixer, SelectiveSSM


class NoRotation(SelectiveMixer):
    """A state that decays and never turns: α is real and positive, all else stays complex."""

    class SSM(SelectiveSSM):
        def __init__(self, dim: int, config: MixerConfig, rngs: nnx.Rngs):
            super().__init__(dim, config, rngs)
            self.phase = nnx.Variable(jnp.zeros_like(self.phase[...]))


@dataclass(frozen=True)
class Rival:
    """What takes the place of the default model: fields of `config.model`, kinds of blocks, and the class."""

    title: str
    fields: Mapping[str, Any] = field(default_factory=dict)
    blocks: Mapping[str, Any] = field(default_factory=dict)
    model: type[SEM] = SEM
    ends: float = 1  # learning rate of embedding and readout, in units of the layers'
    step_of: str = ""  # the rival whose step is the same program, if other first values or learning rates are all


def _real(title: str, block: Any, **mixer: int) -> Rival:
    fields = {f"mixer.{name}": value for name, value in mixer.items()}
    return Rival(title, {"blocks": "layers", **fields}, {"layers": block}, RealModel)


_UNBOUNDED = {"mixer.rotation": "affine", "mixer.output_norm": False, "propagator.kerr_saturation": 0.0}
_MAMBA3 = _UNBOUNDED | {"mixer.selective_init": "mamba3"}


def _but(title: str, module: str, part: str) -> Rival:
    """Without bounds, and with one parameter of the mixer as Mamba-3 begins it."""

    def mixer(config: ModelConfig, rngs: nnx.Rngs, layer: int) -> SelectiveMixer:
        mimetic, mamba3 = (
            SelectiveMixer(replace(config, mixer=replace(config.mixer, selective_init=start)), rngs, layer)
            for start in ("mimetic", "mamba3")
        )
        setattr(getattr(mimetic, module), part, getattr(getattr(mamba3, module), part))
        return mimetic

    return Rival(f"SEM, unbounded, with {title}", _UNBOUNDED, {"mixers": mixer})


_POSITION = {"encoder.position_phase": True}

# A complex state counts twice, so the real ones have twice as many of them.
RIVALS = {
    "sem": Rival("SEM"),
    "sem_unbounded": Rival("SEM, unbounded", _UNBOUNDED),
    "sem_mamba3": Rival("SEM, Mamba-3's start", _MAMBA3, step_of="sem_unbounded"),
    "sem_position": Rival("SEM, Mamba-3's start, position phase", _MAMBA3 | _POSITION),
    "sem_spinor": Rival(
        "SEM, Mamba-3's start, position phase, spinor gate", _MAMBA3 | _POSITION | {"mixer.input_map": "spinor_gate"}
    ),
    "sem_fixed": Rival("SEM, position phase, fixed B and C", _POSITION | _UNBOUNDED | {"mixer.kind": "fixed"}),
    "sem_born": Rival("SEM, Mamba-3's start, Born readout", _MAMBA3 | {"likelihood": "born"}),
    "sem_power": Rival("SEM, Mamba-3's start, power readout", _MAMBA3 | {"likelihood": "born"}, model=PowerSEM),
    "sem_no_rotation": Rival("SEM, Mamba-3's start, no rotation of the state", _MAMBA3, {"mixers": NoRotation}),
    "sem_real": _real("SEM, real-valued", RealMixer, state_dim=32),
    "gpt": _real("GPT", GPT),
    "mamba2": _real("Mamba-2", Mamba2, state_dim=32),
    "gru": _real("GRU", GRU),
}
BUT = {
    "sem_unbounded_but_qk_proj": _but("queries that are not keys", "ssm", "qk_proj"),
    "sem_unbounded_but_qk_bias": _but("biases of 1", "ssm", "qk_bias"),
    "sem_unbounded_but_phase": _but("phases in all heads", "ssm", "phase"),
    "sem_unbounded_but_decay": _but("still heads that forget as the others do", "ssm", "decay"),
    "sem_unbounded_but_taps": _but("taps drawn apart", "conv", "kernel"),
}
LESS_BOUNDED = {
    f"sem_but_{field.rpartition('.')[2]}": Rival(f"SEM, but for the bound of {title}", {field: value})
    for (field, value), title in zip(
        _UNBOUNDED.items(), ("the rotation", "the mixer's output", "the Kerr phase"), strict=True
    )
}
RIVALS |= BUT | LESS_BOUNDED
OTHERS = ("gpt", "mamba2", "gru")
BASIC = ("sem", *OTHERS)
ENDS = "_ends"
RIVALS |= {
    f"{name}{ENDS}": replace(
        RIVALS[name], title=f"{RIVALS[name].title}, ends × 5", ends=5, step_of=RIVALS[name].step_of or name
    )
    for name in (*BASIC, "sem_unbounded", "sem_mamba3")
}


@contextmanager
def installed(rival: Rival, tags: int = 0) -> Iterator[None]:
    """Within it, all that makes a model makes the rival.

    Args:
      rival: which.
      tags: 0, or the vocabulary of a task whose tokens are pairs; see `tagged`.
    """
    kind = tagged(rival.model, tags) if tags else rival.model
    with mock.patch.dict(BLOCKS, rival.blocks), mock.patch.object(model, "SEM", kind):
        yield


class Answers(nnx.Module):
    """A readout that is asked for the answers of `tagged` tokens."""

    def __init__(self, inner: nnx.Module, vocabulary: int):
        self.inner, self.vocabulary = inner, vocabulary

    def log_probs(self, psi: Array) -> Array:
        """log P of every answer."""
        return self.inner.log_probs(psi)

    def target_log_prob(self, psi: Array, targets: Array) -> tuple[Array, Array]:
        """See `Readout`."""
        return self.inner.target_log_prob(psi, targets // self.vocabulary)


@functools.cache
def tagged(kind: type[SEM], vocabulary: int) -> type[SEM]:
    """A model of this kind for tokens that carry an answer: id = input + V·(answer to the input before).

    The trainer predicts the next token of one sequence; tasks that label each input with an answer hand it pairs. The
    model sees the inputs alone, and the readout is asked for the answers alone.
    """

    class Tagged(kind):
        def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
            super().__init__(config, rngs)
            self.readout = Answers(self.readout, vocabulary)

        def __call__(self, tokens: Array, *args: Any, **kwargs: Any) -> Any:
            return super().__call__(tokens % vocabulary, *args, **kwargs)

    return Tagged


def pairs(inputs: np.ndarray, answers: np.ndarray, weights: np.ndarray, vocabulary: int) -> Batch:
    """Inputs, an answer to each and its weight, [B, S], as a batch of `tagged` tokens."""
    tokens = np.zeros((len(inputs), inputs.shape[1] + 1), np.int32)
    tokens[:, :-1] = inputs
    tokens[:, 1:] += (vocabulary * answers).astype(np.int32)
    return Batch(tokens, np.zeros_like(tokens, bool), weights)
