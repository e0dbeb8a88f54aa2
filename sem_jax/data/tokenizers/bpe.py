"""Byte-pair encoding: the algorithm is HuggingFace `tokenizers`, the promises are ours."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from sem_jax.data.errors import DataError
from sem_jax.data.tokenizers.base import SPECIAL_TOKENS, Tokenizer, utf8

_log = logging.getLogger(__name__)
_ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())  # one printable character for each of the 256 bytes
_MIN_VOCAB = len(SPECIAL_TOKENS) + len(_ALPHABET)
_PIECE = 2**20  # characters encoded as one: the library spends about 100 bytes on a character while it works
_AT_ONCE = 2**22  # characters handed to the library in one call
_LESSON = 2**16  # characters of a piece of a long text from which the vocabulary is trained
# No language has such words, and the time that the library takes to learn from one grows with the square of its length.
_ENDLESS = re.compile(r"(?<!\S)\S{4097,}")


class BPETokenizer(Tokenizer):
    """Byte-level BPE over all 256 bytes; the special tokens are ids 0-4."""

    kind = "bpe"

    def __init__(self, backend: tokenizers.Tokenizer):
        """Args: a byte-level BPE whose vocabulary holds the special tokens first and all 256 bytes."""
        vocabulary = backend.get_vocab()
        tokens = sorted(vocabulary, key=vocabulary.__getitem__)
        if [vocabulary[token] for token in tokens] != list(range(len(tokens))):
            raise DataError("the ids of a BPE vocabulary must be 0, 1, 2 and so on without a gap")
        if tuple(tokens[: len(SPECIAL_TOKENS)]) != SPECIAL_TOKENS:
            raise DataError(f"a BPE vocabulary must start with {', '.join(SPECIAL_TOKENS)}, got {tokens[:5]}")
        if absent := set(_ALPHABET) - set(tokens):
            raise DataError(f"a BPE vocabulary must hold all 256 bytes, {len(absent)} are absent: {sorted(absent)[:5]}")
        added = backend.get_added_tokens_decoder()
        if len(added) != len(SPECIAL_TOKENS) or not all(token.special for token in added.values()):
            raise DataError("a BPE vocabulary must have no added token but the special ones")
        self._backend = backend
        self._backend.no_truncation()
        self._backend.no_padding()
        # Not part of the saved file. Without it the text "<eos>" would become the special token.
        self._backend.encode_special_tokens = True
        sizes = [0] * len(SPECIAL_TOKENS) + [len(token) for token in tokens[len(SPECIAL_TOKENS) :]]
        super().__init__(np.array(sizes), first_special=0)

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> BPETokenizer:
        """The most frequent merges of `texts`; equal texts give an equal vocabulary.

        Args:
          texts: may come in any portions.
          vocab_size: upper bound of the vocabulary; a short text offers fewer merges.

        Raises:
          DataError: `vocab_size` has no room for the 256 bytes and the special tokens.
        """
        if vocab_size < _MIN_VOCAB:
            raise DataError(f"config.data.bpe_vocab_size = {vocab_size} must be at least {_MIN_VOCAB}")
        backend = tokenizers.Tokenizer(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=list(SPECIAL_TOKENS),
            initial_alphabet=_ALPHABET,
            show_progress=False,
        )
        backend.train_from_iterator((lesson for text in texts for lesson in _lessons(text)), trainer)
        tokenizer = cls(backend)
        if tokenizer.vocab_size < vocab_size:
            _log.warning("the text gave a BPE vocabulary of %d, fewer than %d", tokenizer.vocab_size, vocab_size)
        return tokenizer

    @classmethod
    def from_json(cls, text: str) -> BPETokenizer:
        """The tokenizer of a `tokenizer.json` of the HuggingFace library.

        Raises:
          DataError: the file is not one, or its vocabulary does not keep the promises of this class.
        """
        try:
            backend = tokenizers.Tokenizer.from_str(text)
        except Exception as error:  # the library raises nothing narrower
            raise DataError(f"not a tokenizer of the HuggingFace library: {error}") from error
        rules = backend.pre_tokenizer, backend.decoder, backend.model
        kinds = pre_tokenizers.ByteLevel, decoders.ByteLevel, models.BPE
        if not all(map(isinstance, rules, kinds)) or backend.normalizer or rules[0].add_prefix_space:
            raise DataError("a BPE tokenizer must be byte-level, without normalizer and without a prefix space")
        return cls(backend)

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """See `Tokenizer`."""
        for text in texts:
            utf8(text)  # the library's own error does not say what is wrong
        pieces = [list(_pieces(text, _PIECE)) for text in texts]
        encoded = self._encode_pieces(piece for group in pieces for piece in group)
        return [np.concatenate([next(encoded) for _ in group]) for group in pieces]

    def _encode_pieces(self, pieces: Iterable[str]) -> Iterator[np.ndarray]:
        """The ids of each piece; what the library needs besides is freed from call to call."""
        for group in _groups(pieces):
            for encoding in self._backend.encode_batch_fast(group, add_special_tokens=False):
                yield np.array(encoding.ids, np.int32)

    def _decode(self, ids: np.ndarray) -> str:
        return self._backend.decode(ids.tolist(), skip_special_tokens=True)

    def to_json(self) -> str:
        """See `Tokenizer`."""
        return json.dumps(json.loads(self._backend.to_str()), ensure_ascii=False)


def _lessons(text: str) -> Iterator[str]:
    """What a vocabulary is trained on: the text, a long one in pieces and without its endless words."""
    return iter([text]) if len(text) <= _PIECE else _pieces(_ENDLESS.sub("", text), _LESSON)


def _pieces(text: str, size: int) -> Iterator[str]:
    """The text in portions of at most `size` characters, cut behind a line or, where there is none, before a blank."""
    start = 0
    while len(text) - start > size:
        limit = start + size
        end = text.rfind("\n", start, limit) + 1 or max(text.rfind(" ", start + 1, limit), 0) or limit
        yield text[start:end]
        start = end
    yield text[start:]


def _groups(pieces: Iterable[str]) -> Iterator[list[str]]:
    """Pieces that together have `_AT_ONCE` characters or little more."""
    group: list[str] = []
    size = 0
    for piece in pieces:
        group.append(piece)
        size += len(piece)
        if size >= _AT_ONCE:
            yield group
            group, size = [], 0
    if group:
        yield group
