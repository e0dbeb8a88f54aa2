"""What every tokenizer can do, and what it knows about its vocabulary."""

from __future__ import annotations

import abc
import functools
import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np

from sem_jax.data.errors import DataError
from sem_jax.data.files import write_atomically

SPECIAL_TOKENS = ("<pad>", "<eos>", "<bos>", "<unk>", "<doc_boundary>")


class Tokenizer(abc.ABC):
    """Text to ids and back, exactly: no text is lost, and no text becomes a special token.

    Attributes:
      kind: its name in the configuration.
      token_bytes: `[vocab_size]` int32, how many UTF-8 bytes each id stands for; 0 for special tokens. Nats per token
        become bits per byte through it.
      pad_id, eos_id, bos_id, unk_id, boundary_id: ids of the special tokens; None where the vocabulary has none.
        `boundary_id` opens each document of the packed text, `eos_id` closes it.
    """

    kind: ClassVar[str]

    def __init__(self, token_bytes: np.ndarray, first_special: int | None):
        """Args: bytes of each id, and the first of the consecutive special ids."""
        self.token_bytes = token_bytes.astype(np.int32)
        self.token_bytes.setflags(write=False)
        offsets = range(len(SPECIAL_TOKENS))
        ids = [None if first_special is None else first_special + offset for offset in offsets]
        self.pad_id, self.eos_id, self.bos_id, self.unk_id, self.boundary_id = ids

    @property
    def vocab_size(self) -> int:
        """Number of ids."""
        return len(self.token_bytes)

    @functools.cached_property
    def fingerprint(self) -> str:
        """Hexadecimal name of exactly this vocabulary and its rules."""
        return hashlib.blake2b(f"{self.kind}\n{self.to_json()}".encode(), digest_size=16).hexdigest()

    def encode(self, text: str) -> np.ndarray:
        """Ids of the text, `[n]` int32, with no special token among them.

        Raises:
          DataError: the text is not valid Unicode, or a character is not in the vocabulary.
        """
        return self.encode_batch([text])[0]

    @abc.abstractmethod
    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """`encode` of each text, with all cores where that helps."""

    def decode(self, ids: Iterable[int] | np.ndarray) -> str:
        """Text of the ids; special tokens stand for nothing, incomplete UTF-8 becomes U+FFFD.

        Raises:
          DataError: an id is not in the vocabulary.
        """
        array = np.asarray(ids if isinstance(ids, np.ndarray) else list(ids), np.int64).reshape(-1)
        outside = array[(array < 0) | (array >= self.vocab_size)]
        if outside.size:
            raise DataError(
                f"token id {outside[0]} is outside the vocabulary of {self.vocab_size}; "
                "decode with the tokenizer that the model was trained with"
            )
        return self._decode(array)

    @abc.abstractmethod
    def _decode(self, ids: np.ndarray) -> str:
        """`decode` of ids known to be in the vocabulary."""

    @abc.abstractmethod
    def to_json(self) -> str:
        """The content of the file that `save` writes."""

    def save(self, path: str | Path) -> None:
        """Writes the tokenizer to one JSON file, for `load_tokenizer`."""
        write_atomically(Path(path), self.to_json())


def utf8(text: str) -> bytes:
    """The UTF-8 bytes of a text.

    Raises:
      DataError: the text holds half of a surrogate pair.
    """
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(
            f"the text holds half of a surrogate pair ({text[error.start]!r} at character {error.start}), which is "
            "no character; repair the text where it was decoded"
        ) from error
