"""What a SEM learns beside what a user would pick instead: one trainer, one budget, interchangeable models.

Command:  PYTHONPATH=benchmarks python -m arena TABLE [--seeds=3 --path=FILE --folder=docs/results]
          [--print] [--page=docs/arena.md] [--plot=docs]

TABLE is state_tracking, counting, depth, recall, start, language, library, bytes, bounds, scaling, sampling or
decoding.

Each table has a file in the folder, written whenever trials end, so that a campaign goes on where it was stopped. The
command trains what the file lacks and prints the tables of docs/arena.md; with --print it trains nothing. `language`
and `sampling` read FILE, tiny Shakespeare; `language` also draws its curves into the folder of --plot, which needs
matplotlib (`pip install '.[plot]'`).

All models are trained by the package's own step: its data, schedule, clipping, guard, and Muon for the matrices of the
layers. Each has about as many parameters as the others, a complex one counted twice, and its own learning rate, chosen
from one grid by the training loss under a seed that no other figure uses.
"""

from __future__ import annotations

import sys
from pathlib import Path

from absl import app, flags

from arena.catalogue import TABLES, record_of, text_of
from arena.page import write_table
from sem_jax.training.host import keep_freed_memory

_SEEDS = flags.DEFINE_integer("seeds", 3, "Trials of each cell.", lower_bound=1)
_PATH = flags.DEFINE_string("path", None, "Text file, for the tables of language and sampling.")
_FOLDER = flags.DEFINE_string("folder", "docs/results", "Where the trials are kept.")
_PRINT = flags.DEFINE_bool("print", False, "Only print the tables of the trials that are there.")
_PAGE = flags.DEFINE_string("page", None, "Page, docs/arena.md, whose tables to replace by these.")
_PLOT = flags.DEFINE_string("plot", None, "Folder for the curves of the language table.")


def main(argv: list[str]) -> None:
    """Trains what is missing, then prints."""
    if len(argv) != 2 or argv[1] not in TABLES:
        sys.exit(f"name one table: {', '.join(TABLES)}")
    name = argv[1]
    keep_freed_memory()
    record, table = record_of(name, Path(_FOLDER.value)), TABLES[name]
    if not _PRINT.value:
        text = {}
        if name in ("language", "sampling"):
            text["path"] = _PATH.value or sys.exit(f"the {name} table needs --path=FILE")
        table.campaign(record, _SEEDS.value, **text)
    print(text_of(name, record))
    if _PLOT.value and name == "language":
        table.draw(record, Path(_PLOT.value))
    if _PAGE.value:
        write_table(Path(_PAGE.value), name, text_of(name, record))


if __name__ == "__main__":
    app.run(main)
