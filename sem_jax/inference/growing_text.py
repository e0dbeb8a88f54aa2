"""The text of ids that come piece by piece."""

from __future__ import annotations

import numpy as np

from sem_jax.data import Tokenizer


class GrowingText:
    """Decodes ids as they come; a character whose bytes are spread over several tokens waits for its last byte."""

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._ids = np.zeros(0, np.int32)
        self._shown = 0  # characters that have been given out

    def append(self, ids: np.ndarray) -> str:
        """The text that these ids add, perhaps none yet."""
        self._ids = np.concatenate([self._ids, ids])
        text = self._tokenizer.decode(self._ids)
        whole = len(text.rstrip("\ufffd"))
        new = text[self._shown : whole]
        self._shown = max(self._shown, whole)
        return new

    def rest(self) -> str:
        """What is left when no id follows: a character that was never finished, as U+FFFD."""
        return self._tokenizer.decode(self._ids)[self._shown :]
