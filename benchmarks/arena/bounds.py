"""What the bounds of the model are worth where they matter: in a larger one, at a large learning rate."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from arena import library_bytes
from arena.campaign import Record, judged, markdown, mean_and_spread
from arena.rivals import LESS_BOUNDED, RIVALS
from arena.scaling import measure
from arena.trials import Budget

BUDGET = replace(library_bytes.BUDGET, steps=150)
RATE = 1.2e-2  # three times the one that the default is best at
RIVAL_NAMES = ("sem", *LESS_BOUNDED, "sem_unbounded", "sem_mamba3")


def campaign(record: Record, seeds: int, budget: Budget = BUDGET) -> None:
    """With all bounds, without each, and without any."""
    grid = library_bytes.GRID
    for name in RIVAL_NAMES:
        question = {"rival": name, "task": grid.task, "layers": grid.layers, "rate": RATE}
        record.answers([question | {"seed": seed} for seed in range(seeds)], partial(measure, budget))


def tables(record: Record) -> str:
    """The table of docs/arena.md, from the cells alone."""
    rows = []
    for name in RIVAL_NAMES:
        cells = judged(record, rival=name)
        norms = ", ".join(f"{cell['grad_norm']:,.0f}" for cell in cells)
        rows.append([RIVALS[name].title, mean_and_spread([cell["bits"] for cell in cells], 4), norms or "–"])
    return markdown([f"at a rate of {RATE}", "bits a byte", "largest norm of the last 50 gradients"], rows)
