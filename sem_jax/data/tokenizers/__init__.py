"""Tokenizers: byte, char, bpe and ids behind one interface; training and loading them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from sem_jax.data.errors import DataError
from sem_jax.data.files import parse_json, read_text, write_atomically
from sem_jax.data.seal import SEAL, sealed, unsealed
from sem_jax.data.tokenizers.base import SPECIAL_TOKENS, Tokenizer
from sem_jax.data.tokenizers.bpe import BPETokenizer
from sem_jax.data.tokenizers.byte import ByteTokenizer
from sem_jax.data.tokenizers.char import CharTokenizer
from sem_jax.data.tokenizers.ids import IdsTokenizer

__all__ = [
    "SPECIAL_TOKENS",
    "BPETokenizer",
    "ByteTokenizer",
    "CharTokenizer",
    "IdsTokenizer",
    "Tokenizer",
    "load_tokenizer",
    "save_sealed",
    "train_tokenizer",
]


_LARGEST_FILE = 2**26  # bytes; twice the largest vocabulary in use


def train_tokenizer(kind: str, texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """A tokenizer of the given kind.

    Args:
      kind: "byte" (which reads no text), "char" or "bpe".
      texts: the training text.
      vocab_size: upper bound of a bpe vocabulary.

    Raises:
      DataError: from reading the texts, from an impossible `vocab_size`, or from a kind that has nothing to learn.
    """
    if kind == "ids":
        raise DataError(
            "config.data.tokenizer = ids needs config.data.tokenizer_path, the tokenizer.json of a workdir that "
            "python -m sem_jax.convert has written; no text tells how many ids a vocabulary has"
        )
    if kind == "byte":
        return ByteTokenizer()
    return CharTokenizer.train(texts) if kind == "char" else BPETokenizer.train(texts, vocab_size)


def save_sealed(tokenizer: Tokenizer, path: Path) -> None:
    """Writes a tokenizer with a checksum of its content, for `load_tokenizer`; other libraries do not know the seal.

    Raises:
      DataError: the file cannot be written.
    """
    write_atomically(path, json.dumps(sealed(json.loads(tokenizer.to_json())), ensure_ascii=False))


_CURE = "restore the file; a new one, which fits no model yet, is trained with: python -m sem_jax.tokenizer"


def load_tokenizer(path: str | Path, cure: str = _CURE) -> Tokenizer:
    """Reads what `Tokenizer.save` or `save_sealed` wrote.

    A fitting `tokenizer.json` of the HuggingFace library is a bpe tokenizer.

    Args:
      path: of the file.
      cure: what to do where it cannot be read, for the error.

    Raises:
      DataError: the file is missing, damaged or not a tokenizer.
    """
    try:
        text = read_text(Path(path).expanduser(), _LARGEST_FILE)
        content = parse_json(text)
        if isinstance(content, dict) and SEAL in content:
            content = unsealed(content)
            text = json.dumps(content)
    except OSError as error:
        raise DataError(f"cannot read the tokenizer {path}: {error.strerror}; {cure}") from error
    except ValueError as error:
        raise DataError(f"the tokenizer {path} is damaged ({error}); {cure}") from error
    try:
        return _from_content(content, text)
    except DataError as error:
        raise DataError(f"{path} cannot be used: {error}; {cure}") from error


def _from_content(content: object, text: str) -> Tokenizer:
    match content:
        case {"kind": "byte"}:
            return ByteTokenizer()
        case {"kind": "char", "characters": str(characters)}:
            return CharTokenizer(characters)
        case {"kind": "ids", "vocab_size": int(vocab_size)}:
            return IdsTokenizer(vocab_size)
        case {"model": _}:
            return BPETokenizer.from_json(text)
    raise DataError("it is not a tokenizer")
