"""A byte is a token: nothing to train, nothing unknown."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np

from sem_jax.data.tokenizers.base import SPECIAL_TOKENS, Tokenizer, utf8

_NUM_BYTES = 256


class ByteTokenizer(Tokenizer):
    """Ids 0-255 are the bytes of UTF-8, the special tokens follow."""

    kind = "byte"

    def __init__(self) -> None:
        super().__init__(np.repeat([1, 0], [_NUM_BYTES, len(SPECIAL_TOKENS)]), first_special=_NUM_BYTES)

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """See `Tokenizer`."""
        return [np.frombuffer(utf8(text), np.uint8).astype(np.int32) for text in texts]

    def _decode(self, ids: np.ndarray) -> str:
        return ids[ids < _NUM_BYTES].astype(np.uint8).tobytes().decode("utf-8", errors="replace")

    def to_json(self) -> str:
        """See `Tokenizer`."""
        return json.dumps({"kind": self.kind})
