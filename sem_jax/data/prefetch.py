"""Prefetching: the next few batches are made in a thread while a step runs."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Generic, TypeVar

T = TypeVar("T")


class Prefetch(Iterator[T], Generic[T]):
    """Iterates over `make(step)` for each step, in order, a little ahead of the consumer.

    What `make` raises is raised by `next` at its place in the order, with the traceback of the thread. A context
    manager; leaving it stops the thread.
    """

    def __init__(self, make: Callable[[int], T], steps: Iterable[int], depth: int = 2):
        """Args: function and steps, such as `range(start, stop)`; how many results to keep ready."""
        self._make = make
        self._steps = iter(steps)
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="prefetch")
        self._ready: deque[Future[T]] = deque()
        self._depth = depth
        self._fill()

    def _fill(self) -> None:
        for _ in range(self._depth):
            self._request()

    def _request(self) -> None:
        for step in self._steps:
            self._ready.append(self._pool.submit(self._make, step))
            return

    def __next__(self) -> T:
        if not self._ready:
            raise StopIteration
        result = self._ready.popleft().result()
        self._request()
        return result

    def restart(self, steps: Iterable[int]) -> None:
        """Drops what was made ahead, and goes on with these steps."""
        self._steps = iter(steps)
        for early in self._ready:
            early.cancel()
        self._ready.clear()
        self._fill()

    def close(self) -> None:
        """Drops what was made ahead and waits for the thread; nothing follows."""
        self._steps = iter(())
        self._ready.clear()
        self._pool.shutdown(cancel_futures=True)

    def __enter__(self) -> Prefetch[T]:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self.close()
