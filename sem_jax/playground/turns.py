"""One generation at a time, and a short queue."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from http import HTTPStatus

from sem_jax.playground.guard import Refused

MOST_WAITING = 4
LONGEST_WAIT = 30.0  # seconds
_BETWEEN_LOOKS = 0.1  # seconds


class Turns:
    """Lets one in, keeps a few waiting and sends the others away."""

    def __init__(self) -> None:
        self._running = threading.Lock()
        self._places = threading.BoundedSemaphore(1 + MOST_WAITING)

    @contextlib.contextmanager
    def turn(self, is_gone: Callable[[], bool]) -> Iterator[None]:
        """Waits for the turn, and holds it.

        Args:
          is_gone: whether whoever waits has given up.

        Raises:
          Refused: too many wait already, or it has taken too long.
          ConnectionAbortedError: whoever waited has given up.
        """
        if not self._places.acquire(blocking=False):
            raise _busy(f"{MOST_WAITING} requests are waiting for this model already")
        try:
            self._wait(is_gone)
            try:
                yield
            finally:
                self._running.release()
        finally:
            self._places.release()

    def close(self, patience: float) -> None:
        """Lets no one in any more, after waiting so many seconds for who is in."""
        self._running.acquire(timeout=patience)

    def _wait(self, is_gone: Callable[[], bool]) -> None:
        end = time.monotonic() + LONGEST_WAIT
        while not self._running.acquire(timeout=_BETWEEN_LOOKS):
            if is_gone():
                raise ConnectionAbortedError
            if time.monotonic() > end:
                raise _busy("this model is still writing another text")


def _busy(reason: str) -> Refused:
    return Refused(HTTPStatus.SERVICE_UNAVAILABLE, f"{reason}; try again soon", Retry_After="5")
