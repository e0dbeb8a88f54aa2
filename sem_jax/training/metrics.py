"""metrics.jsonl: what a run tells programs."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import os
import re
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

from sem_jax.data.files import parse_json, require_regular
from sem_jax.errors import SemJaxError

Split = Literal["train", "validation", "skip", "health", "sample", "time", "stage", "rescue"]
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
      losses: nats a token of each validation that it told of, by step; NaN where they were not finite.
      seconds: that the run had taken by the last line that was kept; 0 where none tells.
      lost_seconds: from there to the last line that was dropped.
      rescued: fields whose change by a rescue it told of.
      spent: values of the last line of the split "time" that was kept; empty if there was none.
    """

    def __init__(self, workdir: str | os.PathLike[str], start_step: int = 0):
        """Opens the file, creates the directory, and drops what an interrupted run wrote after its last checkpoint.

        Args:
          workdir: directory of the run.
          start_step: step of the checkpoint that training goes on from; lines of later steps are dropped, for they
            will be written again, and so is an evaluation at that step whose sample is missing. 0 starts a run and
            drops every line.

        Raises:
          MetricsError: a line other than the last is damaged, or the file cannot be written.
        """
        path = Path(workdir) / FILE_NAME
        with _naming(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            lines = _parse(path) if start_step > 0 and path.exists() else []
            kept = _complete([(line, values) for line, values in lines if values["step"] <= start_step], start_step)
            if path.exists():
                _rewrite(path, [line for line, _ in kept])
            self._file = path.open("a", encoding="ascii")
        self._path = path
        told = [values for _, values in kept]
        self.losses = _losses(told)
        self.rescued = {values.get("field") for values in told if values["split"] == "rescue"}
        self.last_step = max((values["step"] for values in told), default=0)
        self.seconds = max(map(_seconds, told), default=0.0)
        self.lost_seconds = max((_seconds(values) for _, values in lines), default=0.0) - self.seconds
        self.spent: dict[str, Any] = next((values for values in reversed(told) if values["split"] == "time"), {})

    def __enter__(self) -> MetricsWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def write(self, split: Split, step: int, **values: float | str | list[float]) -> None:
        """Appends one line.

        Args:
          split: what the values were measured on; "skip" tells of a step that the guard refused, "health" of the
            propagators layer by layer, "sample" what the model has written, "time" where the time of the run went,
            "stage" that a stage of the curriculum begins, or why it waits, "rescue" what a rescue has changed.
          step: training steps taken so far.
          **values: by name; numbers, arrays of one number, lists of numbers, or text.

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
        {_OLD_NAMES.get(name, name): _without_null(value) for name, value in values.items()}
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
    """Nats a token of each validation that a run has told of, by step; NaN where they were not finite.

    Raises:
      MetricsError: the file is damaged or cannot be read.
    """
    path = Path(workdir) / FILE_NAME
    if not path.exists():
        return {}
    return _losses(read_metrics(path))


def _losses(lines: Iterable[dict[str, Any]]) -> dict[int, float]:
    told = {line["step"]: line.get("nll") for line in lines if line["split"] == "validation"}
    return {step: nll if isinstance(nll, float) else math.nan for step, nll in told.items()}


def _complete(lines: list[tuple[bytes, dict[str, Any]]], step: int) -> list[tuple[bytes, dict[str, Any]]]:
    """The lines without an evaluation at the step that a kill has cut off before its sample."""
    last = {values["split"] for _, values in lines if values["step"] == step}
    if "sample" in last:
        return lines
    return [(line, values) for line, values in lines if (values["split"], values["step"]) != ("validation", step)]


def _without_null(value: Any) -> Any:
    if isinstance(value, list):
        return [math.nan if each is None else each for each in value]
    return math.nan if value is None else value


def _seconds(values: dict[str, Any]) -> float:
    seconds = values.get("seconds")
    return float(seconds) if isinstance(seconds, int | float) and 0 <= seconds < 1e300 else 0.0


def _strict(value: Any) -> Any:
    if isinstance(value, list):
        return [_strict(each) for each in value]
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
