"""The tables in docs/arena.md, each between the marks `<!-- arena NAME -->` and `<!-- end -->`."""

from __future__ import annotations

import re
from pathlib import Path

_TABLE = re.compile(r"(<!-- arena (\w+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)


def tables_in(page: Path) -> dict[str, str]:
    """What stands between the marks, by name."""
    return {name: table.strip() for _, name, table, _ in _TABLE.findall(page.read_text(encoding="utf-8"))}


def write_table(page: Path, name: str, table: str) -> None:
    """Puts a table between its marks.

    Raises:
      KeyError: the page has no such marks.
    """
    if name not in tables_in(page):
        raise KeyError(f"{page} has no <!-- arena {name} -->")
    text = page.read_text(encoding="utf-8")
    page.write_text(_TABLE.sub(lambda m: f"{m[1]}{table}\n{m[4]}" if m[2] == name else m[0], text), encoding="utf-8")
