"""The folder of an exported model: model.safetensors, config.json, tokenizer.json and README.md, its card."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import safetensors

from sem_jax.config import Config, ConfigError, build
from sem_jax.data import DataError
from sem_jax.data.files import content_digest, folder_atomically, write_atomically
from sem_jax.inference.language_model import LanguageModel
from sem_jax.sharing.card import model_card
from sem_jax.sharing.quantise import require_quantisation
from sem_jax.sharing.rounding import Rounding
from sem_jax.sharing.weights import read_weights, write_weights
from sem_jax.training.workdir import Exported, exported, open_workdir, write_record

WEIGHTS, CARD = "model.safetensors", "README.md"
FILES = (WEIGHTS, "config.json", "tokenizer.json", CARD)


def require_target(folder: str | Path) -> Path:
    """The folder that an export may be written to: one that is missing, empty, or an older export that nobody edited.

    Raises:
      ConfigError: it is something else.
    """
    target = Path(folder).resolve()
    if not target.exists():
        return target
    if not target.is_dir():
        raise ConfigError(f"{target} is a file; give --to a new or an empty folder")
    present = {path.name for path in target.iterdir()}
    if not present:
        return target
    try:
        record = exported(target)
    except ConfigError:
        record = None
    if record is None or present - set(FILES):
        names = ", ".join(sorted(present - set(FILES) if record else present)[:5])
        raise ConfigError(f"{target} holds what no export has written ({names}); give --to a new or an empty folder")
    if CARD in present and record.card != content_digest(target / CARD):
        raise ConfigError(f"{target / CARD} has been edited since the export; keep it elsewhere, or give another --to")
    return target


def write_folder(
    folder: str | Path,
    model: LanguageModel,
    lines: list[dict[str, Any]],
    data_fingerprint: str,
    rounding: Rounding | None = None,
) -> Path:
    """Writes an exported model, whole or not at all; an older export in its place is replaced.

    Paths of this machine are left out: of `config.data.path` the last names stay, unless it names a dataset of a hub.

    Args:
      folder: as `require_target` demands it.
      model: of a run.
      lines: the run's metrics, for the card; may be empty.
      data_fingerprint: of the data that it was trained on; empty where it has been trained on none.
      rounding: how its weights are rounded, and what that costs; None: they are written as they are.

    Returns:
      The folder, without symbolic links.

    Raises:
      ConfigError: the folder holds something else.
      CheckpointError: a weight is not finite, or too large to be rounded.
      DataError: it cannot be written.
    """
    target = require_target(folder)
    config = _without_places(model.config)
    how = rounding.how if rounding else None
    try:
        with folder_atomically(target) as partial:
            write_weights(partial / WEIGHTS, model.parts, how)
            model.tokenizer.save(partial / "tokenizer.json")
            write_atomically(partial / CARD, model_card(model, config, lines, rounding))
            shutil.copymode(partial / CARD, partial / WEIGHTS)  # safetensors keeps its file from all other users
            digests = {"weights": content_digest(partial / WEIGHTS), "card": content_digest(partial / CARD)}
            record = digests | (how._asdict() if how else {})
            write_record(partial, config, data_fingerprint, step=model.step, **record)
    except safetensors.SafetensorError as error:
        raise DataError(f"cannot write {target}: {error}; make room, or choose another place") from error
    return target


def load_folder(folder: str | Path, record: Exported) -> LanguageModel:
    """The model of an exported folder. No file of it is trusted, and none can run code.

    Args:
      folder: of `write_folder`.
      record: its own, as of `exported`.

    Raises:
      ConfigError, DataError, CheckpointError: a file is missing, damaged, leads elsewhere or does not fit the others.
    """
    folder = Path(folder)
    for name in FILES[:3]:
        _require_inside(folder, name)
    config, tokenizer = open_workdir(folder)
    how = None
    if (record.bits, record.group) != (None, None):
        how = require_quantisation(record.bits, record.group, f"{folder / 'config.json'}")
    parts = read_weights(folder / WEIGHTS, config.model, record.weights, how)
    return LanguageModel(config, tokenizer, parts, record.step)


def _require_inside(folder: Path, name: str) -> None:
    """Raises where a symbolic link leads out of the folder, to a file that its author does not own."""
    path = folder / name
    if path.is_symlink() and not path.resolve().is_relative_to(folder.resolve()):
        raise DataError(f"{path} is a link to a file outside of the folder; put the file itself there (cp -L)")


def _without_places(config: Config) -> Config:
    """The configuration without the folders of this machine."""
    data = config.data
    names = [Path(part.strip()).name or "data" for part in data.path.split(",")] if data.path else []
    path = data.path if data.source == "hf" else ",".join(names)
    here = dataclasses.replace(data, path=path, cache_dir="", tokenizer_path="")
    return build(dataclasses.asdict(dataclasses.replace(config, data=here)))
