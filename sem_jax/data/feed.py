"""The training tokens of a source, one behind the other, from any position on."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from sem_jax.data.errors import DataError
from sem_jax.data.packing import Packer
from sem_jax.data.splits import split_by_hash


class Position(NamedTuple):
    """A place between two training tokens.

    Attributes:
      documents: documents of the source up to here, held-out ones included; the last may be consumed in part.
      offset: tokens of the last document that lie before this place.
      digest: hash of the text of the last document, to notice a source that has changed.
    """

    documents: int
    offset: int
    digest: str


class _Packed(NamedTuple):
    number: int  # of the document in its source, from 1
    digest: str
    ids: np.ndarray


class Feed:
    """Reads the documents of the training split once, in order, and gives out their tokens.

    Args:
      documents: all documents of the source.
      validation_fraction: share of the documents that is held out.
      pack: turns documents into ids.
      group_chars: text that is tokenised at once, and so read ahead.
    """

    def __init__(self, documents: Iterable[str], validation_fraction: float, pack: Packer, group_chars: int):
        self._numbered = enumerate(documents, 1)
        self._fraction = validation_fraction
        self._pack = pack
        self._group_chars = group_chars
        self._ready: deque[_Packed] = deque()
        self._current = _Packed(0, "", np.empty(0, pack.dtype))
        self._offset = 0

    @property
    def position(self) -> Position:
        """Where the next token stands."""
        return Position(self._current.number, self._offset, self._current.digest)

    def take(self, count: int) -> np.ndarray:
        """The next `count` tokens, fewer only at the end of the source."""
        tokens = np.empty(count, self._pack.dtype)
        filled = 0
        while filled < count and not self.at_end():
            part = self._current.ids[self._offset : self._offset + count - filled]
            tokens[filled : filled + len(part)] = part
            filled += len(part)
            self._offset += len(part)
        return tokens[:filled]

    def at_end(self) -> bool:
        """Whether no token is left; reads on where the last document is used up."""
        while self._offset == len(self._current.ids):
            if not self._ready:
                self._read_group()
            if not self._ready:
                return True
            self._current = self._ready.popleft()
            self._offset = 0
        return False

    def seek(self, position: Position) -> None:
        """Goes forward to a position, without tokenising what lies before.

        Raises:
          DataError: the source does not hold the same document there as before.
        """
        while self._ready and self._current.number < position.documents:
            self._current = self._ready.popleft()
        if self._current.number < position.documents:
            for number, text in self._numbered:
                if number == position.documents:
                    (self._current,) = self._packed([(number, text)])
                    break
        same = (self._current.number, self._current.digest) == (position.documents, position.digest)
        if not same or position.offset > len(self._current.ids):
            raise DataError(
                f"document {position.documents} of the source is not the one that the cache was made from; restore the "
                "source, or give an empty config.data.cache_dir and another --workdir"
            )
        self._offset = position.offset

    def _read_group(self) -> None:
        group: list[tuple[int, str]] = []
        chars = 0
        for number, text in self._numbered:
            if split_by_hash(text, self._fraction) == "train":
                group.append((number, text))
                chars += len(text)
            if chars >= self._group_chars:
                break
        self._ready.extend(self._packed(group))

    def _packed(self, group: list[tuple[int, str]]) -> list[_Packed]:
        packed = self._pack([text for _, text in group])
        return [
            _Packed(number, hashlib.blake2b(text.encode("utf-8"), digest_size=16).hexdigest(), ids)
            for (number, text), ids in zip(group, packed, strict=True)
        ]
