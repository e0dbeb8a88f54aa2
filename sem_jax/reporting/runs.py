"""A run as its page needs it: columns of numbers out of metrics.jsonl, whatever version has written it."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sem_jax.config import Config, ModelConfig
from sem_jax.data import Tokenizer
from sem_jax.modules.blocks import block_kinds
from sem_jax.modules.model import abstract_model, count_parameters
from sem_jax.training.curriculum import tokens_read
from sem_jax.training.metrics import FILE_NAME, read_metrics
from sem_jax.training.workdir import open_workdir

_LARGEST = 1e300  # sums and differences of such numbers are finite


class Points(NamedTuple):
    """Values of one name in the order of their steps."""

    steps: np.ndarray  # [n] float64
    seconds: np.ndarray  # [n], NaN where a line has none
    values: np.ndarray  # [n], or [n, L] by layer; NaN where the line has no finite number


@dataclass(frozen=True)
class Run:
    """What a workdir tells of its run."""

    name: str  # among those of one page
    config: Config
    tokenizer: Tokenizer
    lines: dict[str, list[dict[str, Any]]]  # by split

    @property
    def last_step(self) -> int:
        """The newest step that any line tells of."""
        return max((line["step"] for lines in self.lines.values() for line in lines), default=0)

    def tokens(self, steps: np.ndarray) -> np.ndarray:
        """Tokens that the run has read after so many steps."""
        return tokens_read(self.config, self.split("stage"), steps)

    @property
    def parameters(self) -> int:
        """Number of real parameters."""
        return _count_parameters(self.config.model)

    def split(self, name: str) -> list[dict[str, Any]]:
        """The lines of a split."""
        return self.lines.get(name, [])

    def points(self, split: str, name: str) -> Points:
        """The numbers of one name; lines without that name are left out."""
        lines, steps, seconds = self._sorted(split)
        known = np.array([name in line for line in lines], bool)
        return Points(steps[known], seconds[known], _column(lines, name)[known])

    def layers(self, split: str, name: str) -> Points:
        """The lists of one name, [n, L]; a layer that a list lacks is NaN, and what is no list is left out."""
        lines, steps, seconds = self._sorted(split)
        known = np.array([isinstance(line.get(name), list) for line in lines], bool)
        lists = [line[name] for line, has in zip(lines, known, strict=True) if has]
        values = np.full((len(lists), max(map(len, lists), default=0)), math.nan)
        for row, numbers in zip(values, lists, strict=True):
            row[: len(numbers)] = [_finite(each) for each in numbers]
        return Points(steps[known], seconds[known], values)

    def _sorted(self, split: str) -> tuple[list[dict[str, Any]], np.ndarray, np.ndarray]:
        """The lines of a split in the order of their steps, with these and their seconds."""
        if split not in self._order:
            lines = sorted(self.split(split), key=lambda line: line["step"])
            steps = np.array([line["step"] for line in lines], np.float64)
            self._order[split] = lines, steps, _column(lines, "seconds")
        return self._order[split]

    @functools.cached_property
    def _order(self) -> dict[str, tuple[list[dict[str, Any]], np.ndarray, np.ndarray]]:
        return {}


def read_runs(workdirs: Sequence[str | Path]) -> list[Run]:
    """Runs with names of their own: those of their folders, or the whole paths where two folders are called alike.

    Raises:
      ConfigError, DataError, MetricsError: a folder is not the workdir of a run that has trained.
    """
    folders = [Path(workdir).absolute().name for workdir in workdirs]
    unique = len(set(folders)) == len(folders)
    return [_read(folder, name if unique else str(folder)) for folder, name in zip(workdirs, folders, strict=True)]


def number(line: dict[str, Any], name: str) -> float:
    """A value of a line; NaN where the line lacks it or has something else, as those of another version may."""
    return _finite(line.get(name))


def _finite(value: Any) -> float:
    if type(value) is float:  # as nearly all are: a large run has millions
        return value if -_LARGEST < value < _LARGEST else math.nan
    return float(value) if isinstance(value, int | float) and abs(value) < _LARGEST else math.nan


def _read(workdir: str | Path, name: str) -> Run:
    config, tokenizer = open_workdir(workdir)
    lines: dict[str, list[dict[str, Any]]] = {}
    for line in read_metrics(Path(workdir) / FILE_NAME):
        lines.setdefault(line["split"], []).append(line)
    return Run(name, config, tokenizer, lines)


def _column(lines: Sequence[dict[str, Any]], name: str) -> np.ndarray:
    return np.array([_finite(line.get(name)) for line in lines], np.float64)


@functools.cache
def _count_parameters(config: ModelConfig) -> int:
    # Layers of a kind are alike, and to build all of a deep model only to count them takes many seconds.
    params = abstract_model(dataclasses.replace(config, num_layers=1)).params
    kinds = block_kinds(config.blocks)
    return sum(count_parameters(group) * (config.num_layers if name in kinds else 1) for name, group in params.items())
