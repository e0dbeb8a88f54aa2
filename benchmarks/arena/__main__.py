"""What a SEM learns beside what a user would pick instead: one trainer, one budget, interchangeable models.

Command:  PYTHONPATH=benchmarks python -m arena TABLE [--seeds=3 --path=FILE --folder=docs/results --print]

TABLE is state_tracking, depth, recall, language or decoding.

Each table has a file in the folder, written after every trial, so that a campaign goes on where it was stopped. The
command trains what the file lacks and prints the tables of docs/arena.md; with --print it trains nothing. `language`
reads FILE, tiny Shakespeare.

All models are trained by the package's own step: its data, schedule, clipping, guard, and Muon for the matrices of the
layers. Each has about as many parameters as the others, a complex one counted twice, and its own learning rate, chosen
from one grid by the training loss under a seed that no other figure uses.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

from absl import app, flags

from arena import decoding, depth, language, recall, state_tracking
from arena.campaign import Record

_SEEDS = flags.DEFINE_integer("seeds", 3, "Trials of each cell.", lower_bound=1)
_FOLDER = flags.DEFINE_string("folder", "docs/results", "Where the trials are kept.")
_PRINT = flags.DEFINE_bool("print", False, "Only print the tables of the trials that are there.")

TABLES = {
    "state_tracking": state_tracking,
    "depth": depth,
    "recall": recall,
    "language": language,
    "decoding": decoding,
}
FILES = {"depth": "state_tracking"}  # where it is not the table's own name


def record_of(name: str, folder: Path) -> Record:
    """The record of a table."""
    return Record(folder / f"arena_{FILES.get(name, name)}.json", dataclasses.asdict(TABLES[name].BUDGET))


def main(argv: list[str]) -> None:
    """Trains what is missing, then prints."""
    if len(argv) != 2 or argv[1] not in TABLES:
        sys.exit(f"name one table: {', '.join(TABLES)}")
    record = record_of(argv[1], Path(_FOLDER.value))
    if not _PRINT.value:
        TABLES[argv[1]].campaign(record, _SEEDS.value)
    print(TABLES[argv[1]].tables(record))


if __name__ == "__main__":
    app.run(main)
