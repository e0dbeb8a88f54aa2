"""What a run tells: metrics.jsonl for programs, a progress line for people, and the clock behind both."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import os
import re
import sys
import time
import zlib
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, TextIO

import jax
from tqdm import tqdm

from sem_jax.data.files import parse_json, require_regular
from sem_jax.errors import SemJaxError

PyTree = Any
Split = Literal["train", "validation", "skip"]
FILE_NAME = "metrics.jsonl"
_LONGEST_LINE = 2**20  # bytes
_CHECKSUM = ', "crc": '
_WHOLE = re.compile(rb'\n$|, "crc": \d+}')  # a line that its writer has ended
# Files written by sem_jax 0.1 name the solver in these, whichever it was.
_OLD_NAMES = {"cg_residual": "residual", "cg_iterations": "iterations"}


class MetricsError(SemJaxError, ValueError):
    """A metrics file that is missing or damaged; the message gives the line and the cure."""


class MetricsWriter:
    """Appends to `<workdir>/metrics.jsonl` one JSON object a line, handed to the system at once; a context manager.

    JSON has no NaN and no infinity: either is written as null, and `read_metrics` gives NaN for it. The last value of a
    line, "crc", is a checksum of all that stands before it.

    Attributes:
      last_step: of the lines that the file held when it was opened; 0 if there was none.
      evaluated: whether the file told of an evaluation at the step that the run goes on from.
    """

    def __init__(self, workdir: str | os.PathLike[str], start_step: int = 0):
        """Opens the file, creates the directory, and drops what an interrupted run wrote after its last checkpoint.

        Args:
          workdir: directory of the run.
          start_step: step of the checkpoint that training goes on from; lines of later steps are dropped, for they
            will be written again. 0 starts a run and drops every line.

        Raises:
          MetricsError: a line other than the last is damaged, or the file cannot be written.
        """
        path = Path(workdir) / FILE_NAME
        with _naming(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            lines = _parse(path) if start_step > 0 and path.exists() else []
            kept = [(line, v["step"]) for line, v in lines if v["step"] <= start_step]
            self.evaluated = any(v["split"] == "validation" and v["step"] == start_step for _, v in lines)
            if path.exists():
                _rewrite(path, [line for line, _ in kept])
            self._file = path.open("a", encoding="ascii")
        self._path = path
        self.last_step = max((step for _, step in kept), default=0)

    def __enter__(self) -> MetricsWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def write(self, split: Split, step: int, **values: float | str) -> None:
        """Appends one line.

        Args:
          split: what the values were measured on; "skip" tells of a step that the guard refused.
          step: training steps taken so far.
          **values: by name; numbers, arrays of one number, or text.

        Raises:
          MetricsError: the file cannot be written.
        """
        numbers = {name: _strict(value) for name, value in values.items()}
        content = json.dumps({"split": split, "step": int(step), **numbers}, allow_nan=False)[:-1]
        line = f"{content}{_CHECKSUM}{zlib.crc32(content.encode())}}}"
        with _naming(self._path):
            self._file.write(line + "\n")
            self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        with contextlib.suppress(OSError):  # `write` has raised it before, for it leaves nothing to be written
            self._file.close()


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Turns what the system refuses into one line that names the file."""
    try:
        yield
    except OSError as error:
        raise MetricsError(
            f"cannot write {path}: {error.strerror or error}; make room or allow writing there, and start the same "
            "command again: the run goes on from its newest checkpoint"
        ) from error


def bits_per_byte(nats_per_token: float, bytes_per_token: float) -> float:
    """Bits per byte of text from nats per token."""
    return nats_per_token / (math.log(2) * bytes_per_token)


def read_metrics(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The lines of a metrics file, oldest first, as dicts with "split", "step" and the values; null becomes NaN.

    Values carry the names of today, whatever version of sem_jax has written them.

    A torn last line, of a run that is writing it or was killed at it, is left out.

    Raises:
      MetricsError: the file is missing, or a line other than the last is damaged.
    """
    path = Path(path)
    try:
        require_regular(path)
    except FileNotFoundError:
        raise MetricsError(f"{path} does not exist; give the {FILE_NAME} of a run that has started") from None
    except OSError as error:
        raise MetricsError(
            f"cannot read {path}: {error.strerror}; give the {FILE_NAME} of a run that has started"
        ) from error
    return [
        {_OLD_NAMES.get(name, name): math.nan if v is None else v for name, v in values.items()}
        for _, values in _parse(path)
    ]


def gap_warning(last_step: int, start_step: int, log_every: int) -> str | None:
    """What to say where a run goes on from a step that its metrics do not reach; None where they do.

    >>> gap_warning(30, 40, 20)
    >>> gap_warning(20, 40, 20)
    'the run goes on from step 40, and metrics.jsonl tells nothing after step 20'
    """
    if last_step > start_step - log_every:
        return None
    return f"the run goes on from step {start_step}, and {FILE_NAME} tells nothing after step {last_step}"


def validation_losses(workdir: str | os.PathLike[str]) -> dict[int, float]:
    """Nats a token of each validation that a run has told of, by step; none before its first line.

    Raises:
      MetricsError: the file is damaged or cannot be read.
    """
    path = Path(workdir) / FILE_NAME
    if not path.exists():
        return {}
    lines = [line for line in read_metrics(path) if line["split"] == "validation"]
    return {line["step"]: line["nll"] for line in lines if isinstance(line.get("nll"), float)}


def _strict(value: Any) -> float | str | None:
    number = value.item() if hasattr(value, "item") else value
    return None if isinstance(number, float) and not math.isfinite(number) else number


def _parse(path: Path) -> list[tuple[bytes, dict[str, Any]]]:
    parsed = []
    with path.open("rb") as file:
        for number in itertools.count(1):
            line = file.readline(_LONGEST_LINE)
            if not line:
                break
            try:
                parsed.append((line.rstrip(b"\r\n"), _values(line)))
            except ValueError as error:
                if not file.read(1) and not _WHOLE.search(line):
                    break  # torn, as the run was killed at it or is writing it
                raise MetricsError(f"{path}, line {number} is damaged ({error}); delete that line") from error
    return parsed


def _values(line: bytes) -> dict[str, Any]:
    """The values of a line, which versions before 0.2 wrote without a checksum; raises ValueError."""
    values = parse_json(line)
    content, _, checksum = line.rpartition(_CHECKSUM.encode())
    if content and checksum.rstrip() != b"%d}" % zlib.crc32(content):
        raise ValueError("it has changed since it was written: its checksum does not fit")
    if not isinstance(values, dict) or not isinstance(values.get("split"), str):
        raise ValueError("it is no record of a split")
    step = values.get("step")
    if not isinstance(step, int) or not 0 <= step < 2**63:
        raise ValueError("it has no step")
    values.pop("crc", None)
    return values


def _rewrite(path: Path, lines: list[bytes]) -> None:
    temporary = path.with_suffix(".tmp")
    try:
        with temporary.open("wb") as file:
            file.writelines(line + b"\n" for line in lines)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


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
