"""How a run goes, for people: a progress line, and the clock behind it."""

from __future__ import annotations

import contextlib
import math
import sys
import time
from collections import deque
from collections.abc import Iterator
from typing import Any, TextIO

import jax
from tqdm import tqdm

PyTree = Any


class Progress:
    """How the training goes, for people: one bar on a terminal, one line an update in a log; a context manager."""

    def __init__(self, total_steps: int, start_step: int = 0, stream: TextIO | None = None):
        """Starts the display.

        Args:
          total_steps: steps of the whole run.
          start_step: steps taken by earlier processes of the run.
          stream: where it is shown; None is standard output.
        """
        self._total = total_steps
        self._stream = stream or sys.stdout
        self._first: tuple[int, float] | None = None  # step and seconds of the first update, after compilation
        self._bar = None
        if self._stream.isatty():
            self._bar = tqdm(
                total=total_steps,
                initial=start_step,
                file=self._stream,
                miniters=1,
                dynamic_ncols=True,
                bar_format="{percentage:3.0f}%|{bar:10}| {desc}",
            )

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def update(
        self,
        step: int,
        *,
        loss: float,
        bits_per_byte: float,
        lr: float,
        lr_scale: float,
        grad_norm: float,
        tokens_per_s: float,
        skipped: int,
    ) -> None:
        """Shows the numbers of one step.

        Args:
          step: training steps taken so far.
          loss: in nats a token.
          bits_per_byte: of the same loss.
          lr: learning rate.
          lr_scale: factor of the guard on the learning rate; shown below 1 only.
          grad_norm: global norm of the gradient.
          tokens_per_s: NaN while it is unknown.
          skipped: steps that the guard has refused so far.
        """
        scale = f" x{lr_scale:.3g}" if lr_scale < 1 else ""
        speed = tqdm.format_sizeof(tokens_per_s) if math.isfinite(tokens_per_s) else "--"
        line = (
            f"step {step:>{len(str(self._total))}}/{self._total}  loss {loss:.4f}  bpb {bits_per_byte:.3f}  "
            f"lr {lr:.2e}{scale}  |g| {grad_norm:.3g}  {speed} tok/s  eta {self._eta(step)}  skipped {skipped}"
        )
        if self._bar is None:
            print(line, file=self._stream, flush=True)
        else:
            self._bar.set_description_str(line, refresh=False)
            self._bar.update(step - self._bar.n)

    def note(self, text: str) -> None:
        """Prints a line of its own, above the bar."""
        if self._bar is None:
            print(text, file=self._stream, flush=True)
        else:
            self._bar.write(text, file=self._stream)

    def close(self) -> None:
        """Leaves the bar as it stands."""
        if self._bar is not None:
            self._bar.close()

    def _eta(self, step: int) -> str:
        now = time.perf_counter()
        if self._first is None:
            self._first = (step, now)
        first_step, start = self._first
        if step == first_step:
            return "--"
        return tqdm.format_interval((self._total - step) * (now - start) / (step - first_step))


class LateMetrics:
    """Fetches the metrics of a step only after the next one is on its way, so that the device never waits for the host.

    Flush before a checkpoint: a run that goes on from it never computes these metrics again.
    """

    def __init__(self) -> None:
        self._pending: tuple[int, PyTree] | None = None

    def push(self, step: int, metrics: PyTree) -> tuple[int, PyTree] | None:
        """Takes the metrics of a step that has just been dispatched; returns the previous step and its metrics.

        Args:
          step: of the metrics.
          metrics: pytree of device arrays, not to be donated.

        Returns:
          What was pushed before, as numpy arrays; None the first time, and after `flush`.
        """
        previous = self.flush()
        self._pending = (step, metrics)
        return previous

    def flush(self) -> tuple[int, PyTree] | None:
        """Waits for the last step pushed and returns it with its metrics; None if it has been returned already."""
        pending, self._pending = self._pending, None
        return None if pending is None else (pending[0], jax.device_get(pending[1]))


class Throughput:
    """Tokens a second over the last steps; the first step, which compiles, and what is paused do not count."""

    def __init__(self, window: int = 20):
        """Starts without a measurement.

        Args:
          window: number of steps to average over.
        """
        self._marks: deque[tuple[float, int]] = deque(
            maxlen=window + 1
        )  # (seconds of training, tokens) after each step
        self._tokens = 0
        self._paused = 0.0

    def step(self, tokens: int) -> None:
        """Counts a training step of so many tokens that has just ended."""
        self._tokens += tokens
        self._marks.append((time.perf_counter() - self._paused, self._tokens))

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """Leaves out the time spent inside, as of an evaluation or a checkpoint."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self._paused += time.perf_counter() - start

    def tokens_per_second(self) -> float:
        """The mean over the window; NaN before the second step."""
        if len(self._marks) < 2:
            return math.nan
        (start, before), (end, after) = self._marks[0], self._marks[-1]
        return (after - before) / (end - start)
