"""The sources: where documents come from, by the names of `config.data.source`.

A source is one function in a file of its own, from a `DataConfig` to a `Corpus`, and one line in `SOURCES`. All else,
the limit on documents, splits, tokens, caches and streaming, is the same for all of them. docs/data.md adds one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import islice

from sem_jax.config import DataConfig
from sem_jax.data.corpus import Corpus
from sem_jax.data.errors import DataError
from sem_jax.data.files import content_digests, edge_digests, fingerprint
from sem_jax.data.pystdlib import open_pystdlib
from sem_jax.data.records import open_hf, open_jsonl, open_parquet
from sem_jax.data.texts import open_text

SOURCES: dict[str, Callable[[DataConfig], Corpus]] = {
    "pystdlib": open_pystdlib,
    "text": open_text,
    "jsonl": open_jsonl,
    "parquet": open_parquet,
    "hf": open_hf,
}


@dataclass(frozen=True)
class Source:
    """A corpus as the configuration selects from it.

    Attributes:
      read: starts a new pass over the documents, none of them empty.
      fingerprint: equal for equal documents in equal order.
    """

    read: Callable[[], Iterator[str]]
    fingerprint: str

    @cached_property
    def num_characters(self) -> int:
        """Length of all documents together; the first question reads them all."""
        return sum(len(text) for text in self.read())


def open_source(config: DataConfig) -> Source:
    """The documents that the configuration names.

    The fingerprint is made from the content of the files, not from their places and times: a copied or touched corpus
    stays the same and an edited one never passes for the old. Hashing is much faster than reading text in Python. Two
    things are known by less. A dataset that is not a local folder has its name, configuration and split alone. The
    files of a stream, which is not to be read to its end, have their sizes, their first bytes and their last.

    Raises:
      DataError: nothing is there to read. What is wrong inside a file is raised while reading.
    """
    if config.source not in SOURCES:
        raise DataError(f"config.data.source = {config.source!r} is not one of {', '.join(SOURCES)}")
    if config.source == "pystdlib" and config.path:
        raise DataError(
            f"config.data.path = {config.path!r} is not read while config.data.source = pystdlib; set "
            "config.data.source = text, or the source that it is"
        )
    corpus = SOURCES[config.source](config)
    content = [*(edge_digests if config.stream else content_digests)(corpus.files), *corpus.name]
    settings = (config.source, config.max_documents, config.text_field, config.score_field, config.min_score)
    return Source(partial(_read_some, corpus.read, config), fingerprint(settings, content))


def _read_some(read: Callable[[], Iterator[str]], config: DataConfig) -> Iterator[str]:
    """At least one document, at most `max_documents`."""
    count = 0
    try:
        for text in islice(read(), config.max_documents or None):
            count += 1
            yield text
    except OSError as error:
        raise DataError(
            f"cannot read config.data.source = {config.source}, config.data.path = {config.path!r} after {count} "
            f"documents: {error}; check the files or the connection, and start the same command again"
        ) from error
    if not count:
        cure = f"lower config.data.min_score = {config.min_score}" if config.score_field else "give files with text"
        raise DataError(f"config.data.path = {config.path!r} holds no document; {cure}")
