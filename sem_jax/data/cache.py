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
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sem_jax.config import DataConfig
from sem_jax.data.errors import DataError
from sem_jax.data.files import content_digest, fingerprint, locked, parse_json, read_text
from sem_jax.data.packing import StreamWriter, token_dtype
from sem_jax.data.seal import sealed, unsealed
from sem_jax.data.sources import Source
from sem_jax.data.splits import SPLITS, Split, split_documents
from sem_jax.data.tokenizers import Tokenizer

_log = logging.getLogger(__name__)
_LARGEST_METADATA = 2**16  # bytes
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

    Raises:
      DataError: the text or the cache folder cannot be used.
    """
    folder = cache_folder(config) / "tokens" / stream_key(source, config, tokenizer)
    return open_packed(folder, SPLITS, split_documents(source, config), tokenizer)


def open_packed(
    folder: Path, splits: Sequence[Split], documents: Iterable[tuple[Split, str]], tokenizer: Tokenizer
) -> Mapping[Split, TokenStream]:
    """The packed tokens in a folder; where there are none, of the documents, which are read only then.

    Several processes may ask at once: one builds, the others wait for it. A damaged folder is built again.

    Raises:
      DataError: the documents or the folder cannot be used.
    """
    with contextlib.suppress(DataError):  # first without the lock, so that a folder that cannot be written to will do
        return _load(folder, splits, tokenizer)
    with locked(folder.with_suffix(".lock")):
        try:
            return _load(folder, splits, tokenizer)
        except DataError as error:
            if folder.exists():
                _log.warning("%s; it will be built again", error)
        _build(folder, splits, documents, tokenizer)
        return _load(folder, splits, tokenizer)


def _load(folder: Path, splits: Sequence[Split], tokenizer: Tokenizer) -> dict[Split, TokenStream]:
    """The cached streams, if they are exactly what was written."""
    try:
        metadata = unsealed(parse_json(read_text(folder / "metadata.json", _LARGEST_METADATA)))
        if set(metadata) != set(splits):
            raise ValueError(f"metadata.json tells of {', '.join(metadata)}, not of {', '.join(splits)}")
        return {split: _open_stream(folder / f"{split}.bin", metadata[split], tokenizer) for split in splits}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"the token cache {folder} is damaged: {error}") from error


def _open_stream(path: Path, facts: Mapping[str, Any], tokenizer: Tokenizer) -> TokenStream:
    if not 0 <= facts["documents"] < facts["tokens"] or not facts["bytes"] >= 0:
        raise ValueError(f"metadata.json counts {facts['documents']} documents and {facts['tokens']} tokens")
    return TokenStream(map_tokens(path, facts, tokenizer), facts["bytes"], facts["documents"])


def map_tokens(path: Path, facts: Mapping[str, Any], tokenizer: Tokenizer) -> np.ndarray:
    """The ids of a file, mapped from disk, if they have the "checksum" and the number of "tokens" of `facts`.

    Raises:
      DataError: they have not, or "max_id" is outside the vocabulary.
    """
    if content_digest(path) != facts["checksum"]:
        raise DataError(f"{path.name} does not match its checksum")
    dtype = token_dtype(tokenizer)
    if path.stat().st_size != facts["tokens"] * dtype.itemsize:
        raise DataError(f"{path.name} does not hold {facts['tokens']} tokens")
    if facts["max_id"] >= tokenizer.vocab_size:
        raise DataError(f"{path.name} holds id {facts['max_id']}, the vocabulary has {tokenizer.vocab_size}")
    return np.memmap(path, dtype, mode="r", shape=(facts["tokens"],))


def _build(folder: Path, splits: Sequence[Split], documents: Iterable[tuple[Split, str]], tokenizer: Tokenizer) -> None:
    """Writes beside `folder` and moves it there when complete. The caller holds the lock."""
    partial = folder.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)  # of a process that was killed
    try:
        partial.mkdir()
        metadata = _write_streams(partial, splits, documents, tokenizer)
        (partial / "metadata.json").write_text(json.dumps(sealed(metadata), indent=1), "utf-8")
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(partial, folder)
    except OSError as error:
        raise DataError(
            f"cannot build the token cache {folder}: {error}; make room or set config.data.cache_dir"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write_streams(
    folder: Path, splits: Sequence[Split], documents: Iterable[tuple[Split, str]], tokenizer: Tokenizer
) -> dict[Split, Any]:
    _log.info("tokenising into %s", folder)
    with contextlib.ExitStack() as stack:
        writers: dict[Split, StreamWriter] = {}
        for split in splits:
            file = stack.enter_context(open(folder / f"{split}.bin", "wb"))
            writers[split] = stack.enter_context(StreamWriter(file, tokenizer))
        for split, text in documents:
            writers[split].add(text)
    return {split: writer.facts() for split, writer in writers.items()}
