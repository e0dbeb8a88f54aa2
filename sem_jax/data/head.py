"""The beginning of a stream: what the tokenizer learns from and what the model is judged on."""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Iterator
from typing import BinaryIO

from sem_jax.config import DataConfig
from sem_jax.data.cache import cache_folder
from sem_jax.data.errors import DataError
from sem_jax.data.sources import Source
from sem_jax.data.splits import SPLITS, Split, split_by_hash

_log = logging.getLogger(__name__)


class Head:
    """The first documents of a source, up to the `tokenizer_sample`-th of the training split.

    They are asked of the source once and kept in a temporary file without a name, so that they need no memory and
    vanish with the process. Whoever asks for nothing causes no reading.
    """

    def __init__(self, source: Source, config: DataConfig):
        self._source = source
        self._config = config
        self._kept: BinaryIO | None = None
        self._rest: Iterator[str] | None = None  # the source behind the head

    def texts(self, split: Split) -> Iterator[str]:
        """The documents of the head that belong to a split.

        Raises:
          DataError: the source cannot be read, or its head lacks one of the splits.
        """
        if self._kept is None:
            self._kept = self._read()
        for text in _texts(self._kept):
            if split_by_hash(text, self._config.validation_fraction) == split:
                yield text

    def whole_source(self) -> Iterator[str]:
        """All documents of the source; those of the head are not asked of it again."""
        if self._kept is None or self._rest is None:
            return self._source.read()
        kept, self._kept = self._kept, None
        return _joined(kept, self._rest)

    def _read(self) -> BinaryIO:
        config = self._config
        _log.info("reading the first %d documents of %s", config.tokenizer_sample, config.path or config.source)
        self._rest = self._source.read()
        kept = _temporary_file(config)
        missing = set(SPLITS)
        left = config.tokenizer_sample
        for text in self._rest:
            kept.write(json.dumps(text).encode() + b"\n")
            split = split_by_hash(text, config.validation_fraction)
            missing.discard(split)
            left -= split == "train"
            if not left:
                break
        if missing:
            raise DataError(
                f"the {missing.pop()} split has none of the first documents of config.data.path = {config.path!r} at "
                f"config.data.validation_fraction = {config.validation_fraction}; raise config.data.tokenizer_sample = "
                f"{config.tokenizer_sample} or change the fraction"
            )
        return kept


def _temporary_file(config: DataConfig) -> BinaryIO:
    folder = cache_folder(config)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return tempfile.TemporaryFile(dir=folder)
    except OSError as error:
        raise DataError(
            f"cannot write to the cache folder {folder}: {error.strerror}; "
            "set config.data.cache_dir or SEM_JAX_CACHE to a folder that can be written to"
        ) from error


def _texts(kept: BinaryIO) -> Iterator[str]:
    kept.seek(0)
    return map(json.loads, kept)


def _joined(kept: BinaryIO, rest: Iterator[str]) -> Iterator[str]:
    with kept:
        yield from _texts(kept)
    yield from rest
