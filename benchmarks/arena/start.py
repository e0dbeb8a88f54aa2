"""What the parts of the mimetic start are worth: recall without one of them (docs/mathematics.md, section 7)."""

from __future__ import annotations

from functools import partial

from arena.campaign import Record, judged, markdown, tuned
from arena.recall import BUDGET, GRID, measure
from arena.rivals import BUT, RIVALS
from arena.trials import Budget


def campaign(record: Record, seeds: int, budget: Budget = BUDGET) -> None:
    """The start as a whole, whose learning rate the others take, then without each of its parts."""
    asked = [{"task": GRID.task, "layers": GRID.layers, "seed": seed} for seed in range(seeds)]
    trials = partial(measure, budget)
    rate = tuned(record, trials, GRID, "sem_unbounded", asked)[0]["rate"]
    for name in BUT:
        record.answers([{"rival": name, **question, "rate": rate} for question in asked], trials)


def tables(record: Record) -> str:
    """The table of docs/arena.md, from the cells alone; trial by trial, for a mean would hide how many learn it."""
    rows = []
    for name in ("sem_unbounded", *BUT):
        right = [f"{100 * cell['accuracy']:.1f}" for cell in judged(record, rival=name, task=GRID.task)]
        rows.append([RIVALS[name].title, ", ".join(right) or "–"])
    return markdown(["percent right of 4 pairs", "seed by seed"], rows)
