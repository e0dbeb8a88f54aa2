"""Where trackers keep a run: TensorBoard's event files, Weights & Biases, Trackio. Each needs the extra of its name."""

from __future__ import annotations

import json
import os
import secrets
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

_FLUSH_SECONDS = 10


class TrackedRun(NamedTuple):
    """What a sink is opened with."""

    name: str
    identity: str  # stays the same when the run goes on
    folder: Path
    start_step: int  # what is known of later steps is void
    config: dict[str, Any]


class Sink(Protocol):
    """Takes what a run tells. It may raise anything: it is dropped then."""

    def log(self, step: int, values: Mapping[str, float | str]) -> None:
        """Takes numbers and texts of a step, by names such as "train/loss"."""

    def close(self) -> None:
        """Brings all of it to its place."""


class _TensorBoard:
    """An event file in `<workdir>/tensorboard`.

    It is written in this thread: the library's own would die of a full disk, and its queue then wait for it for ever.
    """

    def __init__(self, run: TrackedRun):
        from tensorboardX import summary
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto import event_pb2

        self._event, self._summary = event_pb2.Event, summary
        folder = run.folder / "tensorboard"
        folder.mkdir(exist_ok=True)
        self._writer = EventsWriter(str(folder / "events"), f".{os.getpid()}.{secrets.token_hex(2)}")
        self._flushed = time.monotonic()
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)  # voids older events of this step and later
        self._write(run.start_step + 1 if run.start_step else 0, session_log=start)
        text = "\n".join(f"    {line}" for line in json.dumps(run.config, indent=2).splitlines())
        self._write(run.start_step, summary=summary.text("configuration", text))

    def log(self, step: int, values: Mapping[str, float | str]) -> None:
        for name, value in values.items():
            kind = self._summary.text if isinstance(value, str) else self._summary.scalar
            self._write(step, summary=kind(name, value))
        if time.monotonic() - self._flushed > _FLUSH_SECONDS:
            self._writer.flush()
            self._flushed = time.monotonic()

    def close(self) -> None:
        self._writer.close()

    def _write(self, step: int, **content: Any) -> None:
        self._writer.write_event(self._event(wall_time=time.time(), step=step, **content))


class _WandB:
    """Weights & Biases, offline in `<workdir>/wandb` unless the environment's WANDB_MODE says otherwise."""

    def __init__(self, run: TrackedRun):
        import wandb

        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "sem_jax"),
            id=run.identity,
            name=run.name,
            dir=str(run.folder),
            config=run.config,
            resume="allow",
            mode=os.environ.get("WANDB_MODE", "offline"),
            settings=wandb.Settings(console="off", silent=True),
        )
        # Its own steps must not go back, as those of a run that goes on from its checkpoint do.
        self._run.define_metric("*", step_metric="step")

    def log(self, step: int, values: Mapping[str, float | str]) -> None:
        self._run.log({**values, "step": step})

    def close(self) -> None:
        self._run.finish()


class _Trackio:
    """Trackio, in its own local store."""

    def __init__(self, run: TrackedRun):
        import trackio

        project = os.environ.get("TRACKIO_PROJECT", "sem_jax")
        name = f"{run.name}-{run.identity[:6]}"
        self._run = trackio.init(project=project, name=name, config=run.config, resume="allow", embed=False)

    def log(self, step: int, values: Mapping[str, float | str]) -> None:
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        self._run.finish()


SINKS: dict[str, Callable[[TrackedRun], Sink]] = {"tensorboard": _TensorBoard, "trackio": _Trackio, "wandb": _WandB}
