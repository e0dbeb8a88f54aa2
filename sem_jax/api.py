"""From a configuration or a run to a `LanguageModel`, for notebooks and the commands.

The examples use a configuration so small that they take seconds:

>>> TINY = {
...     "model": {"hidden_dim": 16, "num_layers": 1, "propagator": {"laplacian_sparsity": 3}},
...     "optimizer": {"warmup_steps": 1, "decay_steps": 1},
...     "data": {"seq_length": 16, "max_documents": 40},
...     "training": {"max_steps": 2, "global_batch": 2, "micro_batch": 2, "eval_batches": 1},
...     "sampling": {"max_tokens": 4},
... }
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from ml_collections import ConfigDict

from sem_jax.config import Config, ConfigError, build, override, with_vocabulary
from sem_jax.data import DataError, load_tokenizer, open_dataset
from sem_jax.data.tokenizers import IdsTokenizer
from sem_jax.inference.language_model import LanguageModel
from sem_jax.interop import import_state_dict
from sem_jax.modules.model import init_model, split_model
from sem_jax.sharing.folder import load_folder, require_target, write_folder
from sem_jax.sharing.quantise import GROUP, require_quantisation
from sem_jax.sharing.rounding import cost_line, measure_rounding
from sem_jax.training import loop
from sem_jax.training.leaf_record import CheckpointError
from sem_jax.training.metrics import FILE_NAME, read_metrics
from sem_jax.training.retention import Choice
from sem_jax.training.state import start_state
from sem_jax.training.workdir import create_workdir, data_fingerprint, exported, restore_run

ConfigLike: TypeAlias = Mapping[str, Any] | ConfigDict | Config


def init(config: ConfigLike, seed: int = 0) -> LanguageModel:
    """An untrained model of a configuration; its tokenizer is trained or loaded as the configuration says.

    >>> sem_jax.init(TINY)
    LanguageModel(sem, 16,601 parameters, byte vocabulary of 261, step 0)

    Args:
      config: an experiment; fields that a mapping lacks take their defaults.
      seed: of the parameters.

    Raises:
      ConfigError: the configuration is not valid.
      DataError: the text or the tokenizer cannot be used.
    """
    typed = _typed(config)
    dataset = open_dataset(typed.data, seed, typed.training.global_batch)
    typed = with_vocabulary(typed, dataset.tokenizer.vocab_size)
    return LanguageModel(typed, dataset.tokenizer, init_model(typed.model, seed))


def train(
    config: ConfigLike, workdir: str | Path, echo: Callable[[str], None] = print, rescue: bool = False
) -> LanguageModel:
    """Trains a model, or goes on with the run in `workdir`, until `training.max_steps` or Ctrl-C.

    >>> model = sem_jax.train(TINY, workdir, echo=lambda line: None)  # doctest: +ELLIPSIS
    step 2/2  loss ...
    >>> model.step
    2

    Args:
      config: the experiment.
      workdir: where metrics, checkpoints and the resolved configuration go.
      echo: prints a line of what is done besides training.
      rescue: whether a run that diverges goes on with the remedies of docs/running.md, one after the other.

    Returns:
      What `load(workdir)` returns.

    Raises:
      ConfigError, DataError, CheckpointError, MetricsError: the input or the workdir cannot be used.
      TrainingDiverged: `optimizer.guard_max_consecutive` bad steps in a row, or a damaged state; with `rescue`, when no
        remedy is left.
    """
    loop.train(_typed(config), workdir, echo, rescue=rescue)
    return load(workdir)


def load(workdir: str | Path, step: Choice = None, fallback: bool = False) -> LanguageModel:
    """The model of a training run or of an exported folder; its averaged parameters where the run keeps an average.

    >>> model = sem_jax.load(workdir)
    >>> text = model.generate("def ")

    Args:
      workdir: of `train`, `convert`, `export` or `python -m sem_jax.train`.
      step: which checkpoint; None is the newest, "best" the one of the lowest validation loss.
      fallback: whether to take the newest older one that is intact in place of a damaged one; a warning says so.

    Raises:
      ConfigError, DataError, CheckpointError: the workdir is not one, or what it holds is damaged.
    """
    if (record := exported(workdir)) is not None:
        if step not in (None, record.step):
            raise CheckpointError(f"{workdir} holds the model of step {record.step} alone; ask for no checkpoint")
        return load_folder(workdir, record)
    run = restore_run(workdir, step, fallback)
    return LanguageModel(run.config, run.tokenizer, run.state.evaluated, run.step)


def export(
    workdir: str | Path,
    to: str | Path,
    step: Choice = None,
    fallback: bool = False,
    bits: int | None = None,
    echo: Callable[[str], None] = print,
) -> Path:
    """Writes the model of a training run as a folder to be given to others: docs/share.md.

    >>> folder = sem_jax.export(workdir, workdir + "-shared")
    >>> sem_jax.load(folder).step
    2

    Args:
      workdir: as in `load`.
      to: a new or an empty folder, or an older export, which is replaced.
      step, fallback: as in `load`.
      bits: 8 or 4, to which large matrices are rounded for a smaller file; None: every number as it is.
      echo: prints what the rounding costs.

    Returns:
      The folder.

    Raises:
      ConfigError, DataError, CheckpointError, MetricsError: the workdir is not one, what it holds is damaged or rounded
        already, `bits` is another number, or the folder holds something else or cannot be written.
    """
    how = None if bits is None else require_quantisation(bits, GROUP, "the export")
    require_target(to)
    record = exported(workdir)
    if record is not None and record.bits is not None:
        raise ConfigError(
            f"the weights in {workdir} are rounded to {record.bits} bits already; export the run itself, or share a "
            "copy of this folder"
        )
    model = load(workdir, step, fallback)
    metrics = Path(workdir) / FILE_NAME
    lines = read_metrics(metrics) if metrics.exists() else []
    rounding = None
    if how is not None:
        rounding = measure_rounding(model, workdir, how)
        echo(cost_line(rounding))
    return write_folder(to, model, lines, data_fingerprint(workdir) or "", rounding)


def convert(
    state_dict: str | Path, workdir: str | Path, tokenizer_path: str | Path | None = None, **overrides: int | float
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


def _typed(config: ConfigLike) -> Config:
    return config if isinstance(config, Config) else build(config)
