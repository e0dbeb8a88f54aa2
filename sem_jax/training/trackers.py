"""Experiment trackers: what metrics.jsonl tells, for those who watch their runs elsewhere, too."""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from sem_jax.config import Config, tracker_names
from sem_jax.data.files import write_atomically
from sem_jax.training.sinks import SINKS, Sink, TrackedRun

_ID = "tracking.id"  # names the run to trackers, so that a resumed one goes on with it
_SPLITS = ("train", "validation", "sample", "time")


class Trackers:
    """All trackers of a run. One that fails is one warning, and the run goes on without it."""

    def __init__(self, config: Config, workdir: str | Path, start_step: int, warn: Callable[[str], None]):
        """Opens those that `config.training.trackers` names.

        Args:
          config: the experiment.
          workdir: of the run.
          start_step: steps taken by earlier processes of the run.
          warn: takes a line for people.
        """
        self._warn = warn
        self._open: dict[str, Sink] = {}
        folder, run = Path(workdir).absolute(), None
        for name in tracker_names(config.training.trackers):
            try:
                if run is None:  # one identity for all of them
                    identity = _identity(folder, start_step)
                    run = TrackedRun(folder.name, identity, folder, start_step, dataclasses.asdict(config))
                self._open[name] = SINKS[name](run)
            except Exception as error:  # no tracker is worth a run
                self._drop(name, error)

    def log(self, split: str, step: int, values: Mapping[str, Any]) -> None:
        """Passes a line of metrics on: its numbers and texts, not its lists."""
        if split not in _SPLITS:
            return
        plain = {name: value.item() if hasattr(value, "item") else value for name, value in values.items()}
        told = {f"{split}/{name}": value for name, value in plain.items() if isinstance(value, int | float | str)}
        self._each(lambda sink: sink.log(step, told))

    def close(self) -> None:
        """Closes all of them."""
        self._each(lambda sink: sink.close())

    def _each(self, action: Callable[[Sink], None]) -> None:
        for name, sink in list(self._open.items()):
            try:
                action(sink)
            except Exception as error:  # as above
                self._drop(name, error)

    def _drop(self, name: str, error: Exception) -> None:
        self._open.pop(name, None)
        reason = f"{type(error).__name__}: {' '.join(str(error).split()):.300}"
        if isinstance(error, ModuleNotFoundError):
            reason = f"its library is missing; install it with pip install 'sem-jax[{name}]'"
        self._warn(f"warning: the tracker {name} fails, and the run goes on without it ({reason})")


def _identity(folder: Path, start_step: int) -> str:
    path = folder / _ID
    if start_step == 0 or not path.exists():
        write_atomically(path, secrets.token_hex(8))
    return path.read_text(encoding="ascii").strip()
