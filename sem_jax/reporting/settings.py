"""The configurations of a page's runs as a table: what differs from the default comes first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from sem_jax.config import Config, lookup
from sem_jax.config.fields import shown, walk
from sem_jax.reporting.elements import Node, element
from sem_jax.reporting.runs import Run


class _Row(NamedTuple):
    field: str
    meaning: str
    default: Any
    values: list[Any]  # by run

    @property
    def differs(self) -> bool:
        """Whether any run has another value than the default."""
        return any(value != self.default for value in self.values)


def settings_section(runs: Sequence[Run]) -> list[Node]:
    """A table of the fields that differ from the default, and one of all others, folded."""
    rows = [
        _Row(
            f"{path}{each.name}", each.meaning, each.default, [lookup(run.config, f"{path}{each.name}") for run in runs]
        )
        for path, _, group in walk(Config)
        for each in group
    ]
    changed, others = [row for row in rows if row.differs], [row for row in rows if not row.differs]
    return [
        _table(changed, runs) if changed else element("p", "Every field has its default.", class_="empty"),
        element(
            "details",
            element("summary", f"The {len(others)} fields that have their defaults"),
            _table(others, runs),
        ),
    ]


def _table(rows: Sequence[_Row], runs: Sequence[Run]) -> Node:
    names = ["value"] if len(runs) == 1 else [run.name for run in runs]
    head = element("tr", *(element("th", text) for text in ["field", *names, "default"]))
    return element(
        "div",
        element("table", element("thead", head), element("tbody", *map(_row, rows)), class_="settings"),
        class_="scroll",
    )


def _row(row: _Row) -> Node:
    cells = [element("td", _value(value), class_="own" if value != row.default else None) for value in row.values]
    name = element("td", element("code", row.field), element("small", row.meaning))
    return element("tr", name, *cells, element("td", _value(row.default), class_="default"))


def _value(value: Any) -> str:
    if isinstance(value, str):
        return shown(value)[1:-1] if value else "empty"
    return f"{value:g}" if isinstance(value, float) else shown(value)
