"""A character is a token: the vocabulary of nanoGPT's character models."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

import numpy as np

from sem_jax.data.errors import DataError
from sem_jax.data.tokenizers.base import Tokenizer


class CharTokenizer(Tokenizer):
    """The characters of a text in the order of their code points, and no special token."""

    kind = "char"

    def __init__(self, characters: str):
        """Args: distinct characters in ascending order."""
        self._code_points = _code_points(characters)
        if not len(characters) or np.any(np.diff(self._code_points.astype(np.int64)) <= 0):
            raise DataError("the characters of a vocabulary must be distinct and in ascending order, at least one")
        sizes = np.array([len(character.encode("utf-8", "surrogatepass")) for character in characters])
        super().__init__(sizes, first_special=None)

    @classmethod
    def train(cls, texts: Iterable[str]) -> CharTokenizer:
        """The vocabulary of all characters in `texts`."""
        characters: set[str] = set()
        for text in texts:
            characters.update(text)
        return cls("".join(sorted(characters)))

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """See `Tokenizer`."""
        return [self._encode(text) for text in texts]

    def _encode(self, text: str) -> np.ndarray:
        points = _code_points(text)
        ids = np.minimum(np.searchsorted(self._code_points, points), self.vocab_size - 1)
        unseen = np.flatnonzero(self._code_points[ids] != points)
        if unseen.size:
            at = int(unseen[0])
            around = text[max(at - 20, 0) : at + 20]
            raise DataError(
                f"character {text[at]!r} (U+{ord(text[at]):04X}) at position {at}, in {around!r}, "
                f"is not among the {self.vocab_size} characters of the training text; "
                "use config.data.tokenizer = byte or bpe, which know every character"
            )
        return ids.astype(np.int32)

    def _decode(self, ids: np.ndarray) -> str:
        return self._code_points[ids].tobytes().decode("utf-32-le", "surrogatepass")

    def to_json(self) -> str:
        """See `Tokenizer`."""
        return json.dumps({"kind": self.kind, "characters": self._decode(np.arange(self.vocab_size))})


def _code_points(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.dtype("<u4"))
