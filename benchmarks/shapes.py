"""The sizes that training is timed at, and a random batch of each."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from sem_jax.config import Config, build, default, override
from sem_jax.data import Batch

REFERENCE: dict[str, Any] = {  # the arithmetic of the PyTorch original, as configs/reference.py sets it
    "likelihood": "reference",
    "mixer.kind": "fixed",
    "encoder.transport": "sequence_sinkhorn",
    "encoder.position_phase": True,
    "encoder.embedding_skip": False,
    "mixer.clamp_interval": 256,
}

SELECTIVE: dict[str, Any] = {  # the default model
    "encoder.transport": "none",
    "encoder.position_phase": False,
    "mixer.kind": "selective",
    "propagator.kerr_saturation": 0.1,
    "likelihood": "coherent",
    "layout": "interleaved",
}


class Shape(NamedTuple):
    """Sizes of a model and of its batch."""

    hidden_dim: int
    num_layers: int
    vocab_size: int
    batch: int
    length: int
    num_groups: int = 8
    state_dim: int = 16

    @property
    def tokens(self) -> int:
        """Of a batch."""
        return self.batch * self.length


SHAPES = {
    "char": Shape(128, 4, 65, batch=12, length=64),
    "d128": Shape(128, 2, 1000, batch=2, length=256),
    "d256": Shape(256, 8, 32_768, batch=2, length=256),
    "max_aggression": Shape(256, 16, 32_768, batch=1, length=1024, num_groups=16, state_dim=128),
}


def configuration(shape: Shape, changes: dict[str, Any] | None = None) -> Config:
    """A configuration at these sizes, with model fields such as "propagator.solver" changed.

    Without changes it is the model of most tables in docs/performance.md: plan, fixed B and C, Born readout.
    """
    values = default().to_dict()
    sizes: dict[str, Any] = {
        "vocab_size": shape.vocab_size,
        "hidden_dim": shape.hidden_dim,
        "num_layers": shape.num_layers,
        "max_seq_length": shape.length,
        "mixer.num_groups": shape.num_groups,
        "mixer.state_dim": shape.state_dim,
        "encoder.transport": "row_softmax",
        "encoder.position_phase": True,
        "mixer.kind": "fixed",
        "propagator.kerr_saturation": 0.0,
        "likelihood": "born",
        "layout": "mixers_first",
    }
    changes = {f"model.{name}": value for name, value in (sizes | (changes or {})).items()}
    changes |= {"data.seq_length": shape.length}
    changes |= {"training.global_batch": shape.batch, "training.micro_batch": shape.batch}
    return build(override(values, changes))


def random_batch(config: Config, seed: int = 0) -> Batch:
    """Uniform tokens, one document a row, every target counted."""
    rng = np.random.default_rng(seed)
    batch, length = config.training.global_batch, config.data.seq_length
    tokens = rng.integers(0, config.model.vocab_size, (batch, length + 1)).astype(np.int32)
    resets = np.zeros(tokens.shape, bool)
    resets[:, 0] = True
    return Batch(tokens, resets, np.ones((batch, length), np.float32))


def shape_of(config: Config) -> Shape:
    """The sizes of a configuration."""
    model = config.model
    return Shape(
        model.hidden_dim,
        model.num_layers,
        model.vocab_size,
        config.training.global_batch,
        config.data.seq_length,
        model.mixer.num_groups,
        model.mixer.state_dim,
    )
