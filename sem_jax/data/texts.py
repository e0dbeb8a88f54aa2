"""Text files, one document each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from sem_jax.config import DataConfig
from sem_jax.data.corpus import Corpus
from sem_jax.data.errors import DataError
from sem_jax.data.files import find_files


def open_text(config: DataConfig) -> Corpus:
    """The .txt files of `path`."""
    files = find_files(config.path, ".txt")
    return Corpus(partial(_read_texts, files), files)


def _read_texts(files: Sequence[Path]) -> Iterator[str]:
    for path in files:
        try:
            text = path.read_bytes().decode("utf-8")  # not read_text, which would change the ends of lines
        except UnicodeDecodeError as error:
            raise DataError(
                f"{path} is not UTF-8 at byte {error.start}; convert it, for example: iconv -f latin1 -t utf-8"
            ) from error
        if not text:
            raise DataError(f"{path} is empty; remove it or leave it out of config.data.path")
        yield text
