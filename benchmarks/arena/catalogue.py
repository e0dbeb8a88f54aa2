"""The tables of docs/arena.md by name, and where their trials are kept."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from arena import (
    bounds,
    counting,
    decoding,
    depth,
    language,
    library,
    library_bytes,
    recall,
    sampling,
    scaling,
    start,
    state_tracking,
)
from arena.campaign import Record

TABLES = {
    "state_tracking": state_tracking,
    "counting": counting,
    "depth": depth,
    "recall": recall,
    "start": start,
    "language": language,
    "library": library,
    "bytes": library_bytes,
    "bounds": bounds,
    "scaling": scaling,
    "sampling": sampling,
    "decoding": decoding,
}
# Where it is not the table's own name.
FILES = {"counting": "state_tracking", "depth": "state_tracking", "start": "recall"}


def record_of(name: str, folder: Path) -> Record:
    """The record of a table."""
    return Record(folder / f"arena_{FILES.get(name, name)}.json", dataclasses.asdict(TABLES[name].BUDGET))


def text_of(name: str, record: Record) -> str:
    """The tables that a record has for the page."""
    return TABLES[name].tables(record) if record.cells() else "Not measured yet."
