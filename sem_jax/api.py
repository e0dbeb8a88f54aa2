"""From a configuration or a run to a `LanguageModel`, for notebooks and the commands."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from sem_jax.config import Config, build, with_vocabulary
from sem_jax.data import open_dataset
from sem_jax.language_model import LanguageModel
from sem_jax.modules.model import ModelParts, init_model
from sem_jax.training.checkpoint import Checkpointer
from sem_jax.training.state import abstract_state, evaluated_params
from sem_jax.training.workdir import checkpoint_folder, open_workdir


def init(config: Mapping[str, Any] | ConfigDict | Config, seed: int = 0) -> LanguageModel:
    """An untrained model of a configuration; its tokenizer is trained or loaded as the configuration says.

    Raises:
      ConfigError: the configuration is not valid.
      DataError: the text or the tokenizer cannot be used.
    """
    typed = config if isinstance(config, Config) else build(config)
    dataset = open_dataset(typed.data, seed, typed.training.global_batch)
    typed = with_vocabulary(typed, dataset.tokenizer.vocab_size)
    return LanguageModel(typed, dataset.tokenizer, init_model(typed.model, seed))


def load(workdir: str | Path, step: int | None = None) -> LanguageModel:
    """The model of a training run; its averaged parameters where the run keeps an average.

    Args:
      workdir: of `python -m sem_jax.train`.
      step: which checkpoint; None is the newest.

    Raises:
      ConfigError, DataError, CheckpointError: the workdir is not one, or what it holds is damaged.
    """
    config, tokenizer = open_workdir(workdir)
    like, graphdef = abstract_state(config)
    with Checkpointer(checkpoint_folder(workdir), config.training.keep_checkpoints) as checkpointer:
        found, state = checkpointer.restore(like, step)
    parts = ModelParts(graphdef, evaluated_params(state), state.buffers)
    return LanguageModel(config, tokenizer, parts, found)
