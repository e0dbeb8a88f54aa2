"""A trace of a few steps, for xprof and Perfetto."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from sem_jax.config import profiled_steps

FOLDER = "profile"


class Profile:
    """Traces the steps that it is asked for into `<workdir>/profile`. What fails is one warning, and the run goes on.

    The host waits for the device before the first and after the last of these steps, and nowhere else.
    """

    def __init__(self, steps: str, workdir: str | Path, start_step: int, say: Callable[[str], None]):
        """Starts nothing yet.

        Args:
          steps: "FIRST:LAST", both traced; empty: none.
          workdir: of the run.
          start_step: steps taken before; of what lies before it nothing is traced.
          say: takes a line for people.
        """
        first, self._last = profiled_steps(steps) or (0, 0)
        self._first = max(first, start_step + 1)
        self._folder = Path(workdir) / FOLDER
        self._say = say
        self._tracing = False

    def __enter__(self) -> Profile:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def before(self, step: int, state: Any) -> None:
        """To be told of each step before it is dispatched, with the state that it will change."""
        if step == self._first and step <= self._last:
            jax.block_until_ready(state)
            self._tracing = self._try(lambda: jax.profiler.start_trace(self._folder, create_perfetto_trace=True))

    def after(self, step: int, state: Any) -> None:
        """To be told of each step after it has been dispatched, with its state."""
        if self._tracing and step == self._last:
            jax.block_until_ready(state)
            self._stop()

    def _stop(self) -> None:
        if self._tracing:
            self._tracing = False
            if self._try(jax.profiler.stop_trace):
                self._say(f"steps from {self._first} on are traced in {self._folder}")

    def _try(self, action: Callable[[], None]) -> bool:
        """Whether it worked."""
        try:
            action()
            return True
        except Exception as error:  # no trace is worth a run
            self._say(f"warning: no trace is written, and the run goes on: {' '.join(str(error).split()):.300}")
            return False
