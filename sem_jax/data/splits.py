"""Which text trains and which text judges."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from itertools import islice
from typing import Literal

from sem_jax.config import DataConfig
from sem_jax.data.errors import DataError
from sem_jax.data.sources import Source

Split = Literal["train", "validation"]
SPLITS: tuple[Split, ...] = ("train", "validation")


def split_documents(source: Source, config: DataConfig) -> Iterator[tuple[Split, str]]:
    """Every document with its split, in the order of the source.

    `hash` holds out whole documents by a hash of their text: adding, removing or reordering documents moves no other
    document, and copies of one text never stand on both sides. `tail` takes all text as one stream and holds out its
    last share of characters; the document on the cut becomes two, and a number of the ids tokenizer stays whole.

    Raises:
      DataError: after the last document, when one of the splits is empty.
    """
    missing = set(SPLITS)
    for split, text in _by_hash(source, config) if config.split == "hash" else _by_position(source, config):
        missing.discard(split)
        yield split, text
    if missing:
        raise DataError(
            f"the {missing.pop()} split is empty at config.data.validation_fraction = {config.validation_fraction}; "
            "give more documents, change the fraction, or cut the text itself with config.data.split = tail"
        )


def tokenizer_texts(source: Source, config: DataConfig) -> Iterator[str]:
    """What a tokenizer is trained on: the first `tokenizer_sample` documents of the training split, read no further.

    A char vocabulary has to know every character, so it takes all of them.
    """
    texts = (text for split, text in split_documents(source, config) if split == "train")
    limit = config.tokenizer_sample if config.tokenizer == "bpe" else 0
    return islice(texts, limit or None)


def split_by_hash(text: str, fraction: float) -> Split:
    """The validation split if the hash of the text, a uniform number in [0, 1), falls below `fraction`."""
    digest = hashlib.blake2b(text.encode("utf-8"), digest_size=8).digest()
    return "validation" if int.from_bytes(digest, "big") < fraction * 2**64 else "train"


def _by_hash(source: Source, config: DataConfig) -> Iterator[tuple[Split, str]]:
    for text in source.read():
        yield split_by_hash(text, config.validation_fraction), text


def _by_position(source: Source, config: DataConfig) -> Iterator[tuple[Split, str]]:
    left = int(source.num_characters * (1 - config.validation_fraction))  # characters of training text still to come
    for text in source.read():
        cut = _start_of_word(text, left) if config.tokenizer == "ids" else left
        head, tail = text[:cut], text[cut:]
        left = max(left - len(text), 0)
        if head:
            yield "train", head
        if tail:
            yield "validation", tail


def _start_of_word(text: str, position: int) -> int:
    """`position`, or the start of the word that it would cut in two."""
    while 0 < position < len(text) and not text[position - 1].isspace() and not text[position].isspace():
        position -= 1
    return position
