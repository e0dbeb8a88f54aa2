"""A long night: memory, compilations, metrics and the final loss of a run with faults, beside runs without."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from sem_jax.config import Config
from sem_jax.testing.faults import Fault, Place, planting
from sem_jax.training.loop import train
from sem_jax.training.metrics import read_metrics
from sem_jax.training.step import TrainStep, make_train_step

CHANGES = {
    "training__log_every": 100,
    "training__eval_every": 1000,
    "training__checkpoint_every": 1000,
    "training__eval_batches": 64,
    "optimizer__decay_steps": 2000,
}
_WARM_UP = 2000  # steps in which all has happened twice: an evaluation, a sample, a checkpoint
_COMPILED = "/jax/core/compile/backend_compile_duration"
_MOST_GROWTH = 0.05  # of the memory after the warm-up
_MOST_LOGGED = 2**20  # bytes of metrics and output together
# What the guard has to name for a fault at each place. A weight of 1e30 leaves the loss finite and makes one token the
# whole batch: a spike of the gradient.
_REASONS = {
    Place.BATCH: ("loss", "spike"),
    Place.LOSS: ("loss",),
    Place.GRADIENT: ("gradient",),
    Place.UPDATE: ("update",),
    Place.NEW_FIRST_MOMENT: ("moments",),
    Place.NEW_SECOND_MOMENT: ("moments",),
}


class Night(NamedTuple):
    """What came of one run; a sample is (step, compilations so far, bytes of resident memory)."""

    samples: list[tuple[int, int, int]]
    lines: list[dict[str, Any]]
    logged: int  # bytes of metrics and output

    @property
    def loss(self) -> float:
        """The last validation loss, in nats a token."""
        return [line["nll"] for line in self.lines if line["split"] == "validation"][-1]


def faults(steps: int, every: int, rng: random.Random) -> list[Fault]:
    """A fault every so many steps, at any place from which a run recovers, as a NaN, an infinity or an overflow."""
    places = list(_REASONS)
    return [
        Fault(places[number % len(places)], step, rng.choice([float("nan"), float("inf"), 1e30]), "readout/weight")
        for number, step in enumerate(range(every, steps, every))
    ]


def train_all_night(config: Config, seed: int, workdir: Path, planted: Sequence[Fault]) -> Night:
    """Trains one seed to the end, in a process of its own, whose output goes to a file."""
    config = dataclasses.replace(config, training=dataclasses.replace(config.training, seed=seed))
    samples: list[tuple[int, int, int]] = []
    output = workdir.with_suffix(".txt")
    with output.open("w") as file, contextlib.redirect_stdout(file):
        train(config, workdir, make_step=lambda config: _watched(_step(config, planted), samples))
    metrics = workdir / "metrics.jsonl"
    return Night(samples, read_metrics(metrics), output.stat().st_size + metrics.stat().st_size)


def _step(config: Config, planted: Sequence[Fault]) -> TrainStep:
    return planting(*planted)(config) if planted else make_train_step(config)


def _watched(step: TrainStep, samples: list[tuple[int, int, int]]) -> TrainStep:
    """The step, which also takes a sample of the process every 100 steps."""
    taken = compilations = 0

    def count(event: str, *_: object, **__: object) -> None:
        nonlocal compilations
        compilations += event == _COMPILED

    jax.monitoring.register_event_duration_secs_listener(count)

    def watched(*arguments: Any) -> Any:
        nonlocal taken
        taken += 1
        if taken % 100 == 0:
            samples.append((taken, compilations, _resident_memory()))
        return step(*arguments)

    return watched


def _resident_memory() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def losses(nights: Sequence[Night], planted: Sequence[Fault]) -> list[str]:
    """What went wrong in a night with faults, beside nights without: the first has its seed, the others other ones."""
    faulty, *clean = nights
    found = unnamed(faulty.lines, planted)
    for number, night in enumerate(nights):
        (_, before, memory), (_, after, last) = _warm(night)[0], night.samples[-1]
        found += [f"night {number}: compiled {after - before} times after step {_WARM_UP}"] * (after > before)
        found += [f"night {number}: memory {memory:,} -> {last:,} bytes"] * (last > memory * (1 + _MOST_GROWTH))
        found += [f"night {number}: {night.logged:,} bytes of logs"] * (night.logged > _MOST_LOGGED)
    if abs(faulty.loss - clean[0].loss) > _spread(clean):
        found.append(f"ended at {faulty.loss:.4f}, without faults at {clean[0].loss:.4f}")
    return found


def unnamed(lines: Sequence[dict[str, Any]], planted: Sequence[Fault]) -> list[str]:
    """Faults that the metrics do not name by step, cause and leaf, and skips that nobody has planted."""
    skips = {line["step"]: line for line in lines if line["split"] == "skip"}
    found = [f"step {step}: skipped without a fault" for step in skips.keys() - {fault.step for fault in planted}]
    for fault in planted:
        place, skip = Place(fault.place), skips.get(fault.step, {})
        has_leaf = "loss" not in _REASONS[place]
        if skip.get("reason") not in _REASONS[place] or skip.get("leaf", "").endswith(str(fault.leaf)) != has_leaf:
            found.append(f"step {fault.step}: {fault.value} in {place.name} was named {skip}")
    return found


def summary(nights: Sequence[Night]) -> dict[str, Any]:
    """The figures of the table."""
    faulty, *clean = nights
    mebibytes = [round(memory / 2**20) for _, _, memory in (_warm(faulty)[0], faulty.samples[-1])]
    return {
        "MiB after the warm-up and at the end": mebibytes,
        "compilations after the warm-up": faulty.samples[-1][1] - _warm(faulty)[0][1],
        "KiB of logs": round(faulty.logged / 2**10),
        "final loss": round(faulty.loss, 4),
        "without faults": [round(night.loss, 4) for night in clean],
    }


def _warm(night: Night) -> list[tuple[int, int, int]]:
    return [sample for sample in night.samples if sample[0] >= _WARM_UP]


def _spread(nights: Sequence[Night]) -> float:
    values = [night.loss for night in nights]
    return max(values) - min(values)
