"""The run: its length, its batches and how often what happens."""

from __future__ import annotations

import re
from dataclasses import dataclass

from sem_jax.config.fields import MOST_STEPS, ConfigError, require, setting, shown

MOST_SEQUENCES = 2**20
_LONGEST_PROFILE = 1000  # steps; a trace is kept in memory until it ends
TRACKERS = ("tensorboard", "trackio", "wandb")


@dataclass(frozen=True)
class TrainingConfig:
    """The run: its length, its batches and how often what happens."""

    seed: int = setting(0, "of parameters, batches, noise and samples", at_least=0, at_most=2**31 - 1)
    max_steps: int = setting(2000, "length of the run", unit="steps", at_least=1, at_most=MOST_STEPS)
    global_batch: int = setting(16, "sequences of a step", unit="sequences", at_least=1, at_most=MOST_SEQUENCES)
    micro_batch: int = setting(
        16,
        "sequences of a forward pass; gradients are accumulated up to global_batch",
        unit="sequences",
        at_least=1,
        at_most=MOST_SEQUENCES,
    )
    stages: str = setting(
        "",
        "later stages of a curriculum, as STEP:LENGTHxBATCH/MICRO_BATCH with commas, such as 50000:2048x2048/64: after "
        "STEP steps, and once the run is healthy, sequences have LENGTH tokens; left out, batches stay; empty: none",
    )
    log_every: int = setting(
        10, "steps from one line of metrics to the next", unit="steps", at_least=1, at_most=MOST_STEPS
    )
    eval_every: int = setting(
        200, "steps from one validation to the next", unit="steps", at_least=1, at_most=MOST_STEPS
    )
    eval_batches: int = setting(16, "batches of a validation at most", unit="batches", at_least=1, at_most=MOST_STEPS)
    health_every: int = setting(
        50, "steps from one check of the model's health to the next", unit="steps", at_least=1, at_most=MOST_STEPS
    )
    checkpoint_every: int = setting(
        500, "steps from one checkpoint to the next", unit="steps", at_least=1, at_most=MOST_STEPS
    )
    keep_checkpoints: int = setting(
        3,
        "newest checkpoints that are kept, besides the one of the lowest validation loss",
        unit="checkpoints",
        at_least=1,
        at_most=10_000,
    )
    trackers: str = setting(
        "", f"experiment trackers that hear of the run, too, with commas: {', '.join(TRACKERS)}; empty: none"
    )
    profile: str = setting(
        "", "steps whose trace goes into the workdir, for xprof and Perfetto, as FIRST:LAST, such as 10:15; empty: none"
    )
    overfit_batches: int = setting(
        0,
        "train on the first so many batches over and over, a check that learning works; 0: on all",
        unit="batches",
        at_least=0,
        at_most=MOST_STEPS,
    )
    ema_decay: float = setting(
        0.0,
        "decay of the moving average of the parameters; 0: no average; 1 would keep the fresh model for ever",
        at_least=0,
        below=1,
    )
    ema_decay_start: float = setting(
        0.0, "decay of the average in the first step, where ema_decay_steps is not 0", at_least=0, below=1
    )
    ema_decay_steps: int = setting(
        0,
        "steps over which the decay goes linearly from ema_decay_start to ema_decay; 0: it is constant",
        unit="steps",
        at_least=0,
        at_most=MOST_STEPS,
    )
    distill_weight: float = setting(
        0.0,
        "α of (1−α)·loss + α·divergence from the averaged model, the teacher; 0: no teacher; "
        "1 would leave nothing to learn from but the model itself",
        at_least=0,
        below=1,
    )
    distill_temperature: float = setting(1.5, "softens teacher and student alike", at_least=0.01, at_most=1000)


def tracker_names(text: str) -> list[str]:
    """The trackers that `TrainingConfig.trackers` names.

    >>> tracker_names("tensorboard, wandb")
    ['tensorboard', 'wandb']

    Raises:
      ConfigError: one of them is unknown.
    """
    names = [name for name in map(str.strip, text.split(",")) if name]
    for name in names:
        require(
            name in TRACKERS,
            f"config.training.trackers = {shown(text)} names {shown(name)}, which is none of {', '.join(TRACKERS)}",
        )
    return names


def profiled_steps(text: str) -> tuple[int, int] | None:
    """The first and the last step of `TrainingConfig.profile`; None where it is empty.

    >>> profiled_steps("10:15")
    (10, 15)

    Raises:
      ConfigError: it is of another form, or too long for a trace.
    """
    if not text:
        return None
    match = re.fullmatch(r"(\d{1,9}):(\d{1,9})", text)
    first, last = map(int, match.groups()) if match else (0, 0)
    if not 1 <= first <= last < first + _LONGEST_PROFILE:
        raise ConfigError(
            f"config.training.profile = {shown(text)} must be FIRST:LAST, such as 10:15: at most {_LONGEST_PROFILE} "
            "steps, counted from 1"
        )
    return first, last
