"""Where the time of a run went, as rows of a table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from sem_jax.reporting.elements import Node, element
from sem_jax.reporting.runs import Run
from sem_jax.training.clock import CAUSES, seconds_in


class Row(NamedTuple):
    """One cause."""

    meaning: str
    seconds: float
    share: float  # of all


def rows_of(times: list[dict[str, Any]]) -> list[Row]:
    """The causes from the last line of the split "time", the largest first; empty where nothing is told."""
    seconds = seconds_in(times[-1]) if times else {}
    total = sum(seconds.values())
    told = sorted(seconds.items(), key=lambda item: -item[1])
    return [Row(CAUSES[cause], spent, spent / total) for cause, spent in told if spent > 0]


def times_section(runs: Sequence[Run]) -> list[Node]:
    """A table a run."""
    nodes: list[Node] = []
    for run in runs:
        nodes += [element("h3", run.name)] if len(runs) > 1 else []
        nodes.append(_table(rows_of(run.split("time"))))
    return nodes


def _table(rows: list[Row]) -> Node:
    if not rows:
        return element("p", "No line of metrics tells where the time went.", class_="empty")
    head = element("tr", *(element("th", text) for text in ("what", "seconds", "share")))
    texts = [(row.meaning, f"{row.seconds:,.1f}", f"{row.share:.1%}") for row in rows]
    body = [element("tr", *(element("td", text) for text in cells)) for cells in texts]
    return element("div", element("table", element("thead", head), element("tbody", *body)), class_="scroll")
