"""The token cache: a corpus is tokenised once, then every run maps the same two arrays into memory.

    <cache_dir>/tokens/<key>/train.bin        ids, uint16 or uint32
                            /validation.bin
                            /metadata.json    sizes and checksums

The key names exactly this text, split and tokenizer, so that a change of any of them leads to another folder.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sem_jax.config import DataConfig
from sem_jax.data.errors import DataError
from sem_jax.data.files import content_digest, fingerprint, locked
from sem_jax.data.packing import StreamWriter
from sem_jax.data.sources import Source
from sem_jax.data.splits import SPLITS, Split, split_documents
from sem_jax.data.tokenizers import Tokenizer

_log = logging.getLogger(__name__)
_FORMAT = 1  # part of the key: raise it whenever the same text would be packed otherwise


@dataclass(frozen=True)
class TokenStream:
    """One split, packed.

    Attributes:
      tokens: `[n]` uint16 or uint32, mapped from disk.
      num_bytes: length of its text in UTF-8.
      num_documents: documents in it.
    """

    tokens: np.ndarray
    num_bytes: int
    num_documents: int


def cache_folder(config: DataConfig) -> Path:
    """Where caches live: `cache_dir`, else $SEM_JAX_CACHE, else ~/.cache/sem_jax."""
    return Path(config.cache_dir or os.environ.get("SEM_JAX_CACHE") or "~/.cache/sem_jax").expanduser()


def stream_key(source: Source, config: DataConfig, tokenizer: Tokenizer) -> str:
    """Hexadecimal name of the packed tokens."""
    split = (config.split, config.validation_fraction)
    return fingerprint(_FORMAT, source.fingerprint, split, tokenizer.fingerprint)


def open_streams(source: Source, config: DataConfig, tokenizer: Tokenizer) -> Mapping[Split, TokenStream]:
    """The packed tokens of both splits, from the cache, or built and cached.

    Several processes may ask at once: one builds, the others wait for it. A damaged cache is built again.

    Raises:
      DataError: the text or the cache folder cannot be used.
    """
    folder = cache_folder(config) / "tokens" / stream_key(source, config, tokenizer)
    with contextlib.suppress(DataError):  # first without the lock, so that a folder that cannot be written to will do
        return _load(folder, tokenizer)
    with locked(folder.with_suffix(".lock")):
        try:
            return _load(folder, tokenizer)
        except DataError as error:
            if folder.exists():
                _log.warning("%s; it will be built again", error)
        _build(folder, source, config, tokenizer)
        return _load(folder, tokenizer)


def _load(folder: Path, tokenizer: Tokenizer) -> dict[Split, TokenStream]:
    """The cached streams, if they are exactly what was written."""
    try:
        metadata = json.loads((folder / "metadata.json").read_text("utf-8"))
        return {split: _open_stream(folder / f"{split}.bin", metadata[split], tokenizer) for split in SPLITS}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"the token cache {folder} is damaged: {error}") from error


def _open_stream(path: Path, facts: Mapping[str, Any], tokenizer: Tokenizer) -> TokenStream:
    if content_digest(path) != facts["checksum"]:
        raise DataError(f"{path.name} does not match its checksum")
    if facts["max_id"] >= tokenizer.vocab_size:
        raise DataError(f"{path.name} holds id {facts['max_id']}, the vocabulary has {tokenizer.vocab_size}")
    tokens = np.memmap(path, token_dtype(tokenizer), mode="r", shape=(facts["tokens"],))
    return TokenStream(tokens, facts["bytes"], facts["documents"])


def token_dtype(tokenizer: Tokenizer) -> np.dtype:
    """The smallest type that holds every id."""
    return np.dtype("<u2" if tokenizer.vocab_size <= 2**16 else "<u4")


def _build(folder: Path, source: Source, config: DataConfig, tokenizer: Tokenizer) -> None:
    """Writes beside `folder` and moves it there when complete. The caller holds the lock."""
    partial = folder.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)  # of a process that was killed
    try:
        partial.mkdir()
        metadata = _write_streams(partial, source, config, tokenizer)
        (partial / "metadata.json").write_text(json.dumps(metadata, indent=1), "utf-8")
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(partial, folder)
    except OSError as error:
        raise DataError(
            f"cannot build the token cache {folder}: {error}; make room or set config.data.cache_dir"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write_streams(folder: Path, source: Source, config: DataConfig, tokenizer: Tokenizer) -> dict[Split, Any]:
    _log.info("tokenising %s into %s", config.path or config.source, folder)
    dtype = token_dtype(tokenizer)
    with (
        StreamWriter(folder / "train.bin", tokenizer, dtype) as train,
        StreamWriter(folder / "validation.bin", tokenizer, dtype) as validation,
    ):
        writers: dict[Split, StreamWriter] = {"train": train, "validation": validation}
        for split, text in split_documents(source, config):
            writers[split].add(text)
    return {split: writer.facts() for split, writer in writers.items()}
