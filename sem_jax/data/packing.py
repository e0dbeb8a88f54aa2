"""Packing: the documents of a split become one stream of ids on disk.

A document is `boundary, its text, eos`. The boundary stands in front, so that the token at which a model forgets is
also the one that announces the new document; eos stands behind, so that a model learns where to stop. A vocabulary
without special tokens packs the bare text.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from sem_jax.data.tokenizers import Tokenizer

_BATCH_CHARS = 2**22  # text held in memory before it is tokenised at once, on all cores


class StreamWriter:
    """Appends documents to a file of ids and keeps count; a context manager."""

    def __init__(self, path: Path, tokenizer: Tokenizer, dtype: np.dtype):
        self._file = open(path, "wb")  # noqa: SIM115 (closed by __exit__)
        self._tokenizer = tokenizer
        self._dtype = dtype
        self._prefix, self._suffix = (
            np.array([] if special is None else [special], dtype)
            for special in (tokenizer.boundary_id, tokenizer.eos_id)
        )
        self._pending: list[str] = []
        self._pending_chars = 0
        self._checksum = hashlib.blake2b(digest_size=16)
        self._tokens = self._bytes = self._documents = self._max_id = 0

    def add(self, text: str) -> None:
        """Appends one document.

        Raises:
          DataError: the tokenizer cannot encode one of the last documents.
        """
        self._pending.append(text)
        self._pending_chars += len(text)
        if self._pending_chars >= _BATCH_CHARS:
            self._flush()

    def _flush(self) -> None:
        for text, ids in zip(self._pending, self._tokenizer.encode_batch(self._pending), strict=True):
            packed = np.concatenate([self._prefix, ids.astype(self._dtype), self._suffix])
            content = packed.tobytes()
            self._file.write(content)
            self._checksum.update(content)
            self._tokens += len(packed)
            self._bytes += len(text.encode("utf-8"))
            self._documents += 1
            self._max_id = max(self._max_id, int(packed.max(initial=0)))
        self._pending, self._pending_chars = [], 0

    def __enter__(self) -> StreamWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        with self._file:
            if kind is None:
                self._flush()

    def facts(self) -> dict[str, Any]:
        """What was written: counts of tokens, bytes and documents, largest id and checksum. Valid after closing."""
        return {
            "tokens": self._tokens,
            "bytes": self._bytes,
            "documents": self._documents,
            "max_id": self._max_id,
            "checksum": self._checksum.hexdigest(),
        }
