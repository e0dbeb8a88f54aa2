"""A number is a token: text for models whose vocabulary is not at hand."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np

from sem_jax.config.fields import MOST_IDS, shown
from sem_jax.data.errors import DataError
from sem_jax.data.tokenizers.base import Tokenizer


class IdsTokenizer(Tokenizer):
    """Text is ids in decimal, each a word between blanks, and there is no special token.

    Decoding writes a blank before every id, so that texts can be put one behind the other.
    """

    kind = "ids"

    def __init__(self, vocab_size: int):
        """Args: number of ids."""
        if not 1 <= vocab_size <= MOST_IDS:
            raise DataError(f"a vocabulary must have 1 to {MOST_IDS:_} ids, not {shown(vocab_size)}")
        words = [str(i) for i in range(vocab_size)]
        self._ids = {word: i for i, word in enumerate(words)}
        super().__init__(np.array([len(f" {word}") for word in words]), first_special=None)

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """See `Tokenizer`."""
        return [np.array([self._id(word, i) for i, word in enumerate(text.split())], np.int32) for text in texts]

    def _id(self, word: str, index: int) -> int:
        if word not in self._ids:
            raise DataError(
                f"word {index}, {word[:40]!r}, is no token id 0..{self.vocab_size - 1}; give ids separated by blanks, "
                "or convert the model with its tokenizer: python -m sem_jax.convert --tokenizer=FILE"
            )
        return self._ids[word]

    def _decode(self, ids: np.ndarray) -> str:
        return "".join(f" {i}" for i in ids)

    def to_json(self) -> str:
        """See `Tokenizer`."""
        return json.dumps({"kind": self.kind, "vocab_size": self.vocab_size})
