"""A small training run in processes that may be killed, and what it leaves: the pieces that survival.py shares."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from sem_jax.config import Config, build, override
from sem_jax.training.checkpoint import Checkpointer
from sem_jax.training.state import abstract_state
from sem_jax.training.workdir import checkpoint_folder, open_workdir

PATIENCE = 400  # seconds to wait for what must come
_KEEP = 3  # newest checkpoints that stay
_WORDS = "the wave turns and a phase keeps its norm where no graph couples what two channels hold".split()
_WORKDIR = {".lock", "checkpoints", "config.json", "metrics.jsonl", "report.html", "report.md", "tokenizer.json"}
# All that a checkpoint can hold: moments, noise, an average, the guard's memory and a window of spikes.
_FIELDS: dict[str, Any] = {
    "model": {
        "hidden_dim": 16,
        "num_layers": 1,
        "max_seq_length": 64,
        "encoder": {"sdr_candidates": 8, "sdr_sparsity": 4, "cost_dim": 8},
        "mixer": {"block_size": 4, "num_heads": 2, "state_dim": 4},
        "propagator": {"laplacian_sparsity": 3},
    },
    "optimizer": {"learning_rate": 3e-3, "warmup_steps": 2, "decay_steps": 20, "temperature": 1e-7, "spike_zscore": 8},
    "data": {"source": "text", "split": "tail", "tokenizer": "char", "packing": "windows", "seq_length": 16},
    "training": {
        "global_batch": 8,
        "micro_batch": 8,
        "eval_batches": 2,
        "ema_decay": 0.99,
        "log_every": 1,
        "keep_checkpoints": _KEEP,
    },
    "sampling": {"prompt": "the ", "max_tokens": 8},
}


def small_config(folder: Path, steps: int, **changes: Any) -> Config:
    """A run that compiles in seconds, on a text that is written into the folder; `training__seed=1` sets a field."""
    folder.mkdir(parents=True, exist_ok=True)
    text, rng = folder / "text.txt", random.Random(0)
    text.write_text(" ".join(rng.choice(_WORDS) for _ in range(4000)), encoding="utf-8")
    fields = {"data.path": str(text), "data.cache_dir": str(folder / "cache"), "training.max_steps": steps}
    return build(override(_FIELDS, fields | {name.replace("__", "."): value for name, value in changes.items()}))


class Launcher:
    """Starts a run as a user does, on one process or several; its programs are compiled once for all starts."""

    def __init__(self, folder: Path, config: Config, processes: int = 1, devices: int = 1):
        """Writes the configuration.

        Args:
          folder: for the configuration and what the processes say.
          config: of the run.
          processes: that train one model together.
          devices: virtual ones of each process.
        """
        self.folder, self.config, self.processes = folder, config, processes
        self._file = folder / "config.py"
        values = json.dumps(dataclasses.asdict(config))
        self._file.write_text(
            "import json\nfrom sem_jax.config import build, to_config_dict\n"
            f"def get_config():\n    return to_config_dict(build(json.loads({values!r})))\n",
            encoding="utf-8",
        )
        self._environment = {
            "JAX_PLATFORMS": "cpu",
            "JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo",
            "JAX_COMPILATION_CACHE_DIR": str(folder / "programs"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        } | os.environ

    def start(self, workdir: Path) -> Life:
        """Starts the processes, once more where they have been started before."""
        command = [sys.executable, "-m", "sem_jax.train", f"--config={self._file}", f"--workdir={workdir}"]
        command += [f"--config.data.cache_dir={cache_folder(workdir)}"]  # its own, so that a kill may strike there, too
        if self.processes > 1:
            command += [f"--coordinator=127.0.0.1:{_free_port()}", f"--num_processes={self.processes}"]
        return Life(workdir, self.folder, [self._start(command, rank) for rank in range(self.processes)])

    def _start(self, command: list[str], rank: int) -> subprocess.Popen[bytes]:
        if self.processes > 1:
            command = [*command, f"--process_id={rank}"]
        with (self.folder / f"output.{rank}").open("wb") as output:
            return subprocess.Popen(command, env=self._environment, stdout=output, stderr=subprocess.STDOUT)


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


class Life:
    """One start of a run, which may end before its time; a context manager that leaves no process behind."""

    def __init__(self, workdir: Path, folder: Path, processes: list[subprocess.Popen[bytes]]):
        """Watches processes, each of which writes `folder`/output.RANK."""
        self.workdir, self.processes = workdir, processes
        self._folder, self._start = folder, time.monotonic()

    def __enter__(self) -> Life:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes:
            process.kill()
            process.wait()

    def said(self, rank: int = 0) -> str:
        """What a process has said so far."""
        return (self._folder / f"output.{rank}").read_text(encoding="utf-8", errors="replace")

    def last_step(self) -> int:
        """The last step that this start has reported; 0 before its first."""
        steps = re.findall(r"^step +(\d+)/", self.said(), re.MULTILINE)
        return int(steps[-1]) if steps else 0

    def resumed_from(self) -> int | None:
        """The checkpoint that this start went on from; None where there was none, or before it was read."""
        found = re.search(r"^resuming from step (\d+)$", self.said(), re.MULTILINE)
        return int(found[1]) if found else None

    def reach(self, training: bool, seconds: float) -> bool:
        """Waits for a moment: so long after the start, or after the first step; False if a process ends before."""
        start = self._start
        while training and not self.last_step():
            if not self._all_live(0.02) or time.monotonic() > self._start + PATIENCE:
                return False
            start = time.monotonic()
        while time.monotonic() < start + seconds:
            if not self._all_live(0.002):
                return False
        return self._all_live(0)

    def _all_live(self, pause: float) -> bool:
        time.sleep(pause)
        return all(process.poll() is None for process in self.processes)

    def end(self) -> list[int | None]:
        """Waits for all processes; their exit statuses, None for one that does not end."""
        deadline = time.monotonic() + PATIENCE
        while any(process.poll() is None for process in self.processes) and time.monotonic() < deadline:
            time.sleep(0.02)
        return [process.returncode for process in self.processes]

    def seconds_to_first_step(self) -> float:
        """Waits for the first step; the time from the start to it."""
        self.reach(True, 0)
        return time.monotonic() - self._start


def cache_folder(workdir: Path) -> Path:
    """Where the tokens of a run lie."""
    return workdir.with_suffix(".cache")


def saved_steps(workdir: Path) -> list[int]:
    """Steps of the checkpoints that are complete on disk, oldest first."""
    return sorted(int(path.name) for path in checkpoint_folder(workdir).glob("*") if path.name.isdecimal())


def unfinished(workdir: Path) -> set[str]:
    """Names of the checkpoints that are not complete, of which a kill leaves one and the next save clears it."""
    return {path.name for path in checkpoint_folder(workdir).glob("*") if not path.name.isdecimal()}


def has_torn_line(workdir: Path) -> bool:
    """Whether metrics.jsonl ends within a line."""
    path = workdir / "metrics.jsonl"
    return path.exists() and not (path.read_bytes() or b"\n").endswith(b"\n")


def differences(workdir: Path, reference: Path) -> list[str]:
    """How what a finished run has left differs from what one has left that was never interrupted."""
    found = metrics_faults((workdir / "metrics.jsonl").read_bytes(), (reference / "metrics.jsonl").read_bytes())
    found += [f"{path.name} is left over" for path in sorted(workdir.iterdir()) if path.name not in _WORKDIR]
    found += [f"{name} is left over in the cache" for name in sorted(_files(workdir) - _files(reference))]
    found += [f"{name} is left over beside the checkpoints" for name in sorted(unfinished(workdir))]
    # A stop saves and validates at a step of its own: that one may be among the newest, or be the best, which stays
    # beside them.
    left, wanted = saved_steps(workdir), saved_steps(reference)
    missing = [step for step in wanted if step >= min(left[-_KEEP:], default=0) and step not in left]
    if missing or not _KEEP <= len(left) <= _KEEP + 1:
        return [*found, f"checkpoints {left}, not {wanted}"]
    ours, theirs = final_arrays(workdir), final_arrays(reference)
    return found + [f"{name} differs" for name in theirs if ours[name].tobytes() != theirs[name].tobytes()]


def _files(workdir: Path) -> set[str]:
    cache = cache_folder(workdir)
    return {str(path.relative_to(cache)) for path in cache.rglob("*")}


def final_arrays(workdir: Path) -> dict[str, np.ndarray]:
    """All arrays of the newest checkpoint, by name."""
    like = abstract_state(open_workdir(workdir)[0])
    with Checkpointer(checkpoint_folder(workdir), keep=1) as checkpointer:
        _, state = checkpointer.restore(like)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(state)}


def metrics_faults(written: bytes, wanted: bytes) -> list[str]:
    """What is wrong with the metrics of an interrupted run, beside those of one that never was.

    It may have evaluated, and written a sample, once more where it was stopped, and its speed and times are its own.
    """
    if not written.endswith(b"\n"):
        return ["metrics.jsonl ends within a line"]
    ours, theirs = _by_place(written), _by_place(wanted)
    found = [f"{split} {step} stands {len(lines)} times" for (split, step), lines in ours.items() if len(lines) > 1]
    found += [f"{split} {step} is missing" for split, step in theirs if (split, step) not in ours]
    new = [place for place in ours if place not in theirs and place[0] not in ("validation", "sample")]
    found += [f"{split} {step} is new" for split, step in new]
    changed = [place for place in theirs if place in ours and ours[place][:1] != theirs[place]]
    return found + [f"{split} {step} has other values" for split, step in changed]


def _by_place(lines: bytes) -> dict[tuple[str, int], list[dict[str, Any]]]:
    places: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for line in map(json.loads, lines.splitlines()):
        for changing in ("tokens_per_s", "seconds", "crc"):
            line.pop(changing, None)
        if line["split"] != "time":
            places.setdefault((line["split"], line["step"]), []).append(line)
    return places


def default_signals() -> None:
    """Lets processes started from here hear every signal, even where a shell runs this one in the background."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
