"""Where the time of a run goes: seconds of the main thread by cause, which add up to all of its time."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeVar

import jax

T = TypeVar("T")

# What a run spends its time on. "step" is the goodput: all that nothing else has taken.
CAUSES = {
    "step": "training steps",
    "data": "waiting for batches",
    "evaluation": "evaluations and samples",
    "save": "saving checkpoints",
    "compile": "tracing and compiling",
    "restore": "reading a checkpoint",
    "start": "opening data and drawing parameters",
    "lost": "steps that a crash undid",
}
_LONGEST = 1e12  # seconds
_COMPILING = "/jax/core/compile/"


class Clock:
    """Seconds by cause, from its making on; a context manager, within which compilation is noticed.

    Attributes:
      seconds: by the names of `CAUSES`, up to the last change of the cause.
    """

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(CAUSES, 0.0)
        self._cause = "start"
        self._since = time.perf_counter()
        self._thread = threading.get_ident()
        self._compiled: list[tuple[float, float]] = []  # (start, counted seconds) since the cause has changed

    def __enter__(self) -> Clock:
        jax.monitoring.register_event_duration_secs_listener(self._on_event)
        return self

    def __exit__(self, *_: object) -> None:
        jax.monitoring.unregister_event_duration_listener(self._on_event)

    def add(self, seconds: Mapping[str, float]) -> None:
        """Adds what earlier processes of the run have spent."""
        for cause in CAUSES:
            self.seconds[cause] += seconds.get(cause, 0.0)

    def turn(self, cause: str) -> str:
        """From now on time goes to this cause; returns the one before."""
        now, before = time.perf_counter(), self._cause
        compiled = sum(counted for _, counted in self._compiled)
        self.seconds["compile"] += compiled
        self.seconds[before] += now - self._since - compiled
        self._cause, self._since = cause, now
        self._compiled.clear()
        return before

    @contextlib.contextmanager
    def spending(self, cause: str) -> Iterator[None]:
        """Time within goes to this cause, but that of compilation."""
        before = self.turn(cause)
        try:
            yield
        finally:
            self.turn(before)

    def waiting(self, items: Iterable[T], cause: str) -> Iterator[T]:
        """The items; the time until the next one is there goes to the cause."""
        iterator = iter(items)
        while True:
            before = self.turn(cause)
            try:
                item = next(iterator)
            except StopIteration:
                return
            finally:
                self.turn(before)
            yield item

    def _on_event(self, event: str, duration_secs: float, **_: str | int) -> None:
        """Counts what JAX has spent on a program; an outer program's time contains that of the inner ones."""
        if not event.startswith(_COMPILING) or threading.get_ident() != self._thread:
            return
        now = time.perf_counter()
        start = max(now - duration_secs, self._since)
        inner = 0.0
        while self._compiled and self._compiled[-1][0] >= start:
            inner += self._compiled.pop()[1]
        self._compiled.append((start, max(now - start, inner)))


def values_of(seconds: Mapping[str, float]) -> dict[str, float]:
    """Seconds by cause as the values of a line of metrics: step_s, data_s and so on."""
    return {f"{cause}_s": round(spent, 3) for cause, spent in seconds.items()}


def seconds_in(line: Mapping[str, Any]) -> dict[str, float]:
    """Seconds by cause of a line of metrics; 0 where it has none, or something else."""
    given = {cause: line.get(f"{cause}_s") for cause in CAUSES}
    return {
        cause: float(value) if isinstance(value, int | float) and 0 <= value < _LONGEST else 0.0
        for cause, value in given.items()
    }


def describe(seconds: Mapping[str, float]) -> str:
    """One line.

    >>> describe({"step": 90.0, "save": 10.0, "data": 0.0})
    'time: 100 s, of which step 90.0 %, save 10.0 %'
    """
    total = sum(seconds.values())
    shares = [f"{cause} {100 * spent / total:.1f} %" for cause, spent in seconds.items() if spent > 0]
    return f"time: {total:,.0f} s, of which {', '.join(shares)}"
