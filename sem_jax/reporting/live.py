"""The page of a run that is training, to be watched in a browser."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from sem_jax.reporting.page import FILE_NAME, write_page

_LARGEST_SHARE = 0.05  # of a run's time that may go into its page


class LivePage:
    """Writes `<workdir>/report.html` anew whenever it is told to; what goes wrong is told once and never raised.

    A long run has much to draw. So the page is left as it is while drawing it would take more than a twentieth of the
    time; the last page of a run is always written.
    """

    def __init__(self, workdir: str | Path, warn: Callable[[str], None]):
        """Writes nothing yet.

        Args:
          workdir: of the run.
          warn: takes a line for people.
        """
        self._workdir = Path(workdir)
        self._warn = warn
        self._warned = False
        self._due = 0.0  # seconds of the clock

    def update(self, last: bool = False) -> None:
        """Writes the page; `last`: the run ends here."""
        start = time.perf_counter()
        if start < self._due and not last:
            return
        try:
            write_page([self._workdir], self._workdir / FILE_NAME, live=not last)
        except Exception as error:  # whatever it is, no page is worth a run
            self._tell(error)
        end = time.perf_counter()
        self._due = end + (end - start) / _LARGEST_SHARE

    def _tell(self, error: Exception) -> None:
        if not self._warned:
            self._warned = True
            self._warn(f"warning: {FILE_NAME} is not written, and the run goes on: {' '.join(str(error).split())}")
