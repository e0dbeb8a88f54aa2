"""What a source of text gives: its documents, and what tells exactly these documents from all others."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Corpus:
    """Documents, as one source opens them.

    Attributes:
      read: starts a new pass over the documents, none of them empty, in the same order each time. What it raises as a
        `DataError` reaches the user as one line.
      files: the local files that the documents come from; their content identifies the documents.
      name: what identifies them besides: options of this source alone, and the name of a text that is no local file.
    """

    read: Callable[[], Iterator[str]]
    files: Sequence[Path] = ()
    name: Sequence[str] = ()
