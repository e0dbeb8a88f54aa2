"""From a configuration or a run to a `LanguageModel`, for notebooks and the commands."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from sem_jax.config import Config, build, override, with_vocabulary
from sem_jax.data import DataError, load_tokenizer, open_dataset
from sem_jax.data.tokenizers import IdsTokenizer
from sem_jax.inference.language_model import LanguageModel
from sem_jax.interop import import_state_dict
from sem_jax.modules.model import init_model, split_model
from sem_jax.training.state import start_state
from sem_jax.training.workdir import create_workdir, restore_run


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
    run = restore_run(workdir, step)
    return LanguageModel(run.config, run.tokenizer, run.state.evaluated, run.step)


def convert(
    state_dict: str | Path, workdir: str | Path, tokenizer_path: str | Path | None = None, **overrides: Any
) -> LanguageModel:
    """Makes a workdir of a state dict of the PyTorch original, for evaluation, generation and further training.

    Args:
      state_dict: a .pt, .safetensors or .npz file.
      workdir: a new or an empty folder.
      tokenizer_path: the model's tokenizer; None: text is token ids separated by blanks.
      **overrides: values that no shape tells, as `sem_jax.interop.import_state_dict` takes them.

    Returns:
      What `load(workdir)` returns.

    Raises:
      InteropError: the state dict cannot be used.
      ConfigError: a value is impossible, or the workdir holds something.
      DataError: the tokenizer cannot be used or is of another size, or the workdir cannot be written.
    """
    config, model = import_state_dict(state_dict, **overrides)
    vocab_size = config.model.vocab_size
    tokenizer = IdsTokenizer(vocab_size) if tokenizer_path is None else load_tokenizer(tokenizer_path)
    if tokenizer.vocab_size != vocab_size:
        raise DataError(
            f"{tokenizer_path} has {tokenizer.vocab_size} ids, the model {vocab_size}; give the tokenizer that the "
            "model was trained with, or none to work with token ids"
        )
    # A vocabulary without a boundary token cannot start from nothing.
    prompt = config.sampling.prompt if tokenizer.boundary_id is not None else tokenizer.decode([0])
    changes = {"data.tokenizer": tokenizer.kind, "sampling.prompt": prompt}
    config = build(override(dataclasses.asdict(config), changes))
    parts = split_model(model)
    create_workdir(workdir, config, tokenizer, start_state(config, parts))
    return LanguageModel(config, tokenizer, parts)
