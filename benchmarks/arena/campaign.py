"""A table's cells: each is trained once, written into the table's JSON file, and not trained again."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from arena.rivals import RIVALS
from arena.trials import Budget, Trained, Trial, train, trial_values
from sem_jax.data import Batch
from sem_jax.data.files import write_atomically

TUNING_SEED = 100  # no figure uses it, or a larger one, but for learning rates
RATES = (1.3e-3, 4e-3, 1.2e-2, 3.6e-2)
RATE_HEADING = ["training loss at a rate of", *map(str, RATES), "parameters"]

Cell = dict[str, Any]  # what was asked and what was found, as plain values


class Grid(NamedTuple):
    """How a learning rate is chosen: the lowest training loss of one task in so many layers, the mean over seeds."""

    task: str
    layers: int
    rates: tuple[float, ...] = RATES
    seeds: int = 1  # from `TUNING_SEED` on


class Record:
    """The cells of a table in a JSON file that is written after every cell, so that a stopped campaign goes on."""

    def __init__(self, path: Path, budget: dict[str, Any]):
        """Raises SystemExit where the file was made under another budget."""
        self.path = path
        self.content: dict[str, Any] = {"budget": budget, "cells": []}
        if path.exists():
            self.content = json.loads(path.read_text(encoding="utf-8"))
            if self.content["budget"] != json.loads(json.dumps(budget)):
                raise SystemExit(f"{path} holds cells of another budget, {self.content['budget']}; move it away")

    def answers(self, asked: Sequence[Cell], measure: Callable[[list[Cell]], list[Cell]]) -> list[Cell]:
        """The cell that answers each question, those that the file lacks measured together."""
        lacking = [question for question in asked if not self.cells(**question)]
        if lacking:
            start = time.perf_counter()
            found = measure(lacking)
            seconds = round((time.perf_counter() - start) / len(lacking), 1)
            made = [q | cell | {"seconds": seconds} for q, cell in zip(lacking, found, strict=True)]
            self.content["cells"] += made
            write_atomically(self.path, as_text(self.content))
            print(*map(json.dumps, made), sep="\n", file=sys.stderr, flush=True)
        return [self.cells(**question)[0] for question in asked]

    def cells(self, **asked: Any) -> list[Cell]:
        """All cells with these values."""
        return [c for c in self.content["cells"] if asked.items() <= c.items()]


def as_text(content: dict[str, Any]) -> str:
    """JSON with a line for each cell."""
    lines = ",\n  ".join(json.dumps(cell) for cell in content["cells"])
    return f'{{"budget": {json.dumps(content["budget"])},\n "cells": [\n  {lines}\n ]}}\n'


def run_trials(
    budget: Budget,
    asked: list[Cell],
    batches: Callable[[Cell], Callable[[int], Batch]],
    judgement: Callable[[Cell, Trained], Cell],
) -> list[Cell]:
    """Trials of one rival, trained together: what each found.

    Args:
      budget: of the table.
      asked: rival, task, layers, rate and seed of each, of the same rival and layers.
      batches: from a question to its training batches by number.
      judgement: what a trial is judged by, unless it only chooses a learning rate.
    """
    rival, layers = asked[0]["rival"], asked[0]["layers"]
    trained = train(rival, budget, layers, [Trial(each["rate"], each["seed"], batches(each)) for each in asked])
    return [
        trial_values(rival, budget, layers, found) | ({} if tunes(each) else judgement(each, found))
        for each, found in zip(asked, trained, strict=True)
    ]


def tuned(
    record: Record, measure: Callable[[list[Cell]], list[Cell]], grid: Grid, rival: str, asked: Sequence[Cell]
) -> list[Cell]:
    """Trials of a rival at its best learning rate of a grid.

    Args:
      record: what is there.
      measure: trains all trials that it is given in one program.
      grid: the learning rates.
      rival: its name.
      asked: task, layers and seed of each trial.
    """
    tuning = {"rival": rival, "task": grid.task, "layers": grid.layers}
    seeds = range(TUNING_SEED, TUNING_SEED + grid.seeds)
    tried = record.answers([tuning | {"seed": seed, "rate": rate} for rate in grid.rates for seed in seeds], measure)
    losses = {rate: np.mean([cell["loss"] for cell in tried if cell["rate"] == rate]) for rate in grid.rates}
    best = min(grid.rates, key=lambda rate: losses[rate] if np.isfinite(losses[rate]) else np.inf)
    return record.answers([{"rival": rival, **question, "rate": best} for question in asked], measure)


def tunes(cell: Cell) -> bool:
    """Whether it only serves to choose a learning rate."""
    return cell["seed"] >= TUNING_SEED


def judged(record: Record, **asked: Any) -> list[Cell]:
    """The cells with these values that count: not those that chose a learning rate."""
    return [cell for cell in record.cells(**asked) if not tunes(cell)]


def rate_table(record: Record, rivals: Sequence[str], grid: Grid) -> str:
    """What the learning rates of all rivals were chosen by."""
    return markdown(RATE_HEADING, [[RIVALS[name].title, *rate_row(record, name, grid)] for name in rivals])


def rate_row(record: Record, rival: str, grid: Grid) -> list[str]:
    """The losses of the grid, and the parameters in that many layers."""
    cells = record.cells(rival=rival, task=grid.task, layers=grid.layers)
    tuning = [[cell for cell in cells if tunes(cell) and cell["rate"] == rate] for rate in grid.rates]
    losses = [mean_and_spread([cell["loss"] for cell in each], 3) for each in tuning]
    return [*losses, f"{cells[0]['parameters']:,}" if cells else "–"]


def mean_and_spread(values: list[float], digits: int) -> str:
    """ "mean ± standard deviation" of several, the value of one, "–" of none."""
    if not values:
        return "–"
    mean = f"{np.mean(values):.{digits}f}"
    return f"{mean} ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else mean


def markdown(heading: list[str], rows: list[list[str]]) -> str:
    """A table in Markdown."""
    return "\n".join("| " + " | ".join(row) + " |" for row in [heading, ["---"] * len(heading), *rows])
