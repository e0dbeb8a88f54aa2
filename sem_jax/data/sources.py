"""A source: documents that can be read again and again, with a name for exactly this text."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

from sem_jax.config import DataConfig
from sem_jax.data import pystdlib, records
from sem_jax.data.errors import DataError
from sem_jax.data.files import content_digests, find_files, fingerprint


@dataclass(frozen=True)
class Source:
    """A corpus.

    Attributes:
      read: starts a new pass over the documents, none of them empty.
      fingerprint: equal for equal documents in equal order.
    """

    read: Callable[[], Iterator[str]]
    fingerprint: str


def open_source(config: DataConfig) -> Source:
    """The documents that the configuration names.

    The fingerprint is made from the content of the files, not from their names and times: a copied or touched corpus
    stays the same and an edited one never passes for the old. Hashing is much faster than reading text in Python. Only
    a dataset that is not a local folder is known by its name, configuration and split alone.

    Raises:
      DataError: nothing is there to read. What is wrong inside a file is raised while reading.
    """
    if config.source == "pystdlib" and config.path:
        raise DataError(
            f"config.data.path = {config.path!r} is not read while config.data.source = pystdlib; set "
            "config.data.source = text, or the source that it is"
        )
    read, content = _OPENERS[config.source](config)
    settings = (config.source, config.max_documents, config.text_field, config.score_field, config.min_score)
    return Source(partial(_read_some, read, config), fingerprint(settings, content))


def _read_some(read: Callable[[], Iterator[str]], config: DataConfig) -> Iterator[str]:
    """At least one document, at most `max_documents`."""
    count = 0
    for count, text in enumerate(islice(read(), config.max_documents or None), 1):  # noqa: B007 (used after the loop)
        yield text
    if not count:
        cure = f"lower config.data.min_score = {config.min_score}" if config.score_field else "give files with text"
        raise DataError(f"config.data.path = {config.path!r} holds no document; {cure}")


Opened = tuple[Callable[[], Iterator[str]], Sequence[str]]  # the documents, and what identifies their content


def _open_pystdlib(config: DataConfig) -> Opened:
    return pystdlib.library_documents, content_digests(pystdlib.library_files())


def _open_text(config: DataConfig) -> Opened:
    files = find_files(config.path, ".txt")
    return partial(_read_texts, files), content_digests(files)


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


def _open_jsonl(config: DataConfig) -> Opened:
    files = find_files(config.path, ".jsonl")
    return lambda: records.select_texts(records.read_jsonl(files), config), content_digests(files)


def _open_parquet(config: DataConfig) -> Opened:
    files = find_files(config.path, ".parquet")
    columns = [name for name in (config.text_field, config.score_field) if name]
    return lambda: records.select_texts(records.read_parquet(files, columns), config), content_digests(files)


def _open_hf(config: DataConfig) -> Opened:
    folder = Path(config.path)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    content = content_digests(files) if files else [config.path]
    return lambda: records.select_texts(records.read_hf(config), config), [*content, config.hf_config, config.hf_split]


_OPENERS: dict[str, Callable[[DataConfig], Opened]] = {
    "pystdlib": _open_pystdlib,
    "text": _open_text,
    "jsonl": _open_jsonl,
    "parquet": _open_parquet,
    "hf": _open_hf,
}
