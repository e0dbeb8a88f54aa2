"""The stages of a curriculum: the sequence lengths and batches that follow those that a run starts with."""

from __future__ import annotations

import dataclasses
import re
from typing import NamedTuple

from sem_jax.config.experiment import Config
from sem_jax.config.fields import ConfigError, shown

_ENTRY = re.compile(r"(\d{1,10}):(\d{1,7})(?:x(\d{1,7}))?(?:/(\d{1,7}))?")


class Stage(NamedTuple):
    """What one stage trains with."""

    begins: int  # after so many steps of the run, or later
    seq_length: int
    global_batch: int
    micro_batch: int

    @property
    def tokens(self) -> int:
        """Tokens of a step."""
        return self.global_batch * self.seq_length

    def sizes(self) -> dict[str, int]:
        """Sequence length and batches by name."""
        return {"seq_length": self.seq_length, "global_batch": self.global_batch, "micro_batch": self.micro_batch}

    def __str__(self) -> str:
        return f"{self.global_batch} x {self.seq_length} tokens a step"


def stages_of(config: Config) -> list[Stage]:
    """All stages of a run in their order; the first is that of data.seq_length, global_batch and micro_batch.

    >>> from sem_jax.config import build
    >>> [str(stage) for stage in stages_of(build({"training": {"stages": "500:256x8/4"}}))]
    ['16 x 128 tokens a step', '8 x 256 tokens a step']

    Raises:
      ConfigError: `training.stages` is not of its form.
    """
    training = config.training
    first = Stage(0, config.data.seq_length, training.global_batch, training.micro_batch)
    stages = [first]
    for entry in filter(None, training.stages.replace(" ", "").replace("_", "").split(",")):
        match = _ENTRY.fullmatch(entry)
        numbers = [int(number or 0) for number in match.groups()] if match else []
        if not numbers or not min(numbers[:2]):
            raise ConfigError(
                f"config.training.stages = {shown(training.stages)}: {shown(entry)} must be "
                "STEP:LENGTHxBATCH/MICRO_BATCH or STEP:LENGTH, such as 50000:2048x2048/64, with numbers above 0"
            )
        begins, length, batch, micro = numbers
        stages.append(Stage(begins, length, batch or first.global_batch, micro or first.micro_batch))
    return stages


def at_stage(config: Config, stage: Stage) -> Config:
    """The configuration of one stage of a run, whose sequence length and batches are the stage's."""
    data = dataclasses.replace(config.data, seq_length=stage.seq_length)
    training = dataclasses.replace(config.training, global_batch=stage.global_batch, micro_batch=stage.micro_batch)
    return dataclasses.replace(config, data=data, training=training)
