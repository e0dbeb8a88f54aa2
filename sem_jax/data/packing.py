"""Packing: the documents of a split become one stream of ids on disk.

A document is `boundary, its text, eos`. The boundary stands in front, so that the token at which a model forgets is
also the one that announces the new document; eos stands behind, so that a model learns where to stop. A vocabulary
without special tokens packs the bare text.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np

from sem_jax.data.tokenizers import Tokenizer

BATCH_CHARS = 2**22  # text held in memory before it is tokenised at once, on all cores


def token_dtype(tokenizer: Tokenizer) -> np.dtype:
    """The smallest type that holds every id."""
    return np.dtype("<u2" if tokenizer.vocab_size <= 2**16 else "<u4")


class Packer:
    """Turns documents into their ids, special tokens included."""

    def __init__(self, tokenizer: Tokenizer):
        self.dtype = token_dtype(tokenizer)
        self._tokenizer = tokenizer
        self._prefix, self._suffix = (
            np.array([] if special is None else [special], self.dtype)
            for special in (tokenizer.boundary_id, tokenizer.eos_id)
        )

    def __call__(self, texts: Sequence[str]) -> list[np.ndarray]:
        """The ids of each text.

        Raises:
          DataError: the tokenizer cannot encode one of them.
        """
        encoded = self._tokenizer.encode_batch(texts)
        return [np.concatenate([self._prefix, ids.astype(self.dtype), self._suffix]) for ids in encoded]


class StreamWriter:
    """Appends documents to a file of ids and keeps count; a context manager that flushes and leaves the file open."""

    def __init__(self, file: BinaryIO, tokenizer: Tokenizer):
        self._file = file
        self._pack = Packer(tokenizer)
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
        if self._pending_chars >= BATCH_CHARS:
            self._flush()

    def _flush(self) -> None:
        for text, packed in zip(self._pending, self._pack(self._pending), strict=True):
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
        if kind is None:
            self._flush()

    def facts(self) -> dict[str, Any]:
        """What was written: counts of tokens, bytes and documents, largest id and checksum. Valid after the context."""
        return {
            "tokens": self._tokens,
            "bytes": self._bytes,
            "documents": self._documents,
            "max_id": self._max_id,
            "checksum": self._checksum.hexdigest(),
        }
