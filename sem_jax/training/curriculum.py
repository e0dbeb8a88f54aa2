"""The stages of a run: what each trains with, and when the next one begins.

A batch is a function of (seed, step, stage). The state says which stage it is in, so a run goes on with the same bits
wherever it was stopped, also where a stage began later than planned.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from sem_jax.config import Config, ConfigError, Stage, at_stage, stages_of
from sem_jax.config.fields import shown
from sem_jax.data import Batch, DataError, Dataset
from sem_jax.training.mesh import make_layout
from sem_jax.training.state import TrainState, stage_state


class Curriculum:
    """Which stage a run is in; at first the first.

    Attributes:
      number: of the stage, from 1.
      configs: by stage, the configuration with its sequence length and batches.
    """

    def __init__(self, config: Config, dataset: Dataset):
        """Raises ConfigError or DataError where the devices or the data do not fit a stage."""
        self._config, self._stages = config, stages_of(config)
        self.configs = [at_stage(config, stage) for stage in self._stages]
        self._batches = [dataset.train]
        for number, (stage, each) in enumerate(zip(self._stages[1:], self.configs[1:], strict=True), start=2):
            try:
                make_layout(each)
                self._batches.append(dataset.train.recut(stage.seq_length, stage.global_batch))
            except (ConfigError, DataError) as error:
                raise type(error)(f"config.training.stages, stage {number}: {error}") from error
        self.number, self._at = 1, jax.device_get(stage_state(self._stages[0]))

    @property
    def stage(self) -> Stage:
        """The one that the run is in."""
        return self._stages[self.number - 1]

    @property
    def config(self) -> Config:
        """The configuration of this stage."""
        return self.configs[self.number - 1]

    def resume(self, state: TrainState) -> None:
        """Goes to the stage that a state is in.

        Raises:
          ConfigError: `training.stages` gives that stage another size than it had when it began.
        """
        if state.stage is None:
            return
        at = jax.device_get(state.stage)
        saved = (int(at.seq_length), int(at.global_batch))
        found = [stage[1:3] for stage in self._stages]
        number = int(at.number)
        if number > len(found) or found[number - 1] != saved:
            raise ConfigError(
                f"the run is in stage {number} of {saved[1]} x {saved[0]} tokens a step, and config.training.stages = "
                f"{shown(self._config.training.stages)} says otherwise; restore that entry: only later ones may change"
            )
        self.number, self._at = number, at

    def batch(self, step: int, rows: np.ndarray | None = None) -> Batch:
        """The batch that follows after `step` steps, or some rows of it; none twice but for `overfit_batches`."""
        number = int(self._at.first_batch) + step - int(self._at.begun)
        if self._config.training.overfit_batches:
            number %= self._config.training.overfit_batches
        return self._batches[self.number - 1].batch(number, rows)

    def tokens(self, step: int) -> int:
        """Tokens that the run has read in `step` steps."""
        at = self._at
        return (int(at.first_batch) + step - int(at.begun)) * self.stage.tokens + int(at.rest)

    def is_due(self, step: int) -> bool:
        """Whether a next stage may begin after `step` steps."""
        return self.number < len(self._stages) and step >= self._stages[self.number].begins

    def begin_next(self, step: int, state: TrainState) -> TrainState:
        """Goes to the next stage, which begins after `step` steps; returns the state in it.

        The next stage goes on in the data where this one stops, to within a batch.
        """
        tokens, self.number = self.tokens(step), self.number + 1
        first_batch, rest = divmod(tokens, self.stage.tokens)
        at = stage_state(self.stage, self.number, step, first_batch, rest)
        self._at = jax.device_get(at)
        return state.replace(stage=make_layout(self._config).place(self._at))


def obstacle(state: TrainState, losses: Mapping[int, float]) -> str | None:
    """Why a run is not healthy enough for its next stage, in words; None where it is.

    The answer depends on nothing but the state and what has been measured before it, and is the same on all processes.
    It waits for the step, so it is asked for only while a stage is due.

    Args:
      state: after the last step.
      losses: of the validations so far, by step.
    """
    guard = state.opt_state
    if int(guard.consecutive):
        return "the last step was skipped"
    if float(guard.lr_scale) < 1:
        return f"after a bad step the guard's LR scale is {float(guard.lr_scale):g}, not 1"
    if losses and not math.isfinite(losses[max(losses)]):
        return f"the validation loss at step {max(losses)} is not finite"
    return None


def tokens_read(config: Config, lines: Sequence[Mapping[str, Any]], steps: Any) -> Any:
    """Tokens that a run has read after some steps.

    Args:
      config: of the run.
      lines: of the split "stage" in its metrics.
      steps: a number, or an array of any shape.
    """
    begun = sorted((line["step"], line["tokens"], line["tokens_per_step"]) for line in lines if _tells_tokens(line))
    starts, before, rates = np.array([(0, 0, stages_of(config)[0].tokens), *begun], np.float64).T
    stage = np.searchsorted(starts, steps, side="right") - 1
    return before[stage] + (steps - starts[stage]) * rates[stage]


def _tells_tokens(line: Mapping[str, Any]) -> bool:
    """Whether a line tells of a stage that begins, and in numbers that a run can have."""
    return all(isinstance(line.get(name), int) and 0 <= line[name] < 2**63 for name in ("tokens", "tokens_per_step"))
