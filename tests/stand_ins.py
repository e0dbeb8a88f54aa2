"""The training loop with its files and its data, on programs that compute next to nothing."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import pytest

from sem_jax.config import Config, stages_of
from sem_jax.modules.propagator import PropagatorStats
from sem_jax.optim import Reason
from sem_jax.training import evaluation, loop
from sem_jax.training.loss import LossSums
from sem_jax.training.state import TrainState, abstract_state, stage_state
from sem_jax.training.step import EvalMetrics, StepMetrics

_NO_PROPAGATORS = PropagatorStats(*[np.zeros(1)] * 4)


def take_step(state: TrainState, batch: Any, add: float = 0, bad: bool = False, lr_scale: float = 1) -> Any:
    """(state, metrics) after a step: parameters that tell which batches they have seen, and what the guard tells."""
    guard = jax.device_get(state.opt_state)
    consecutive = np.int32(guard.consecutive + 1 if bad else 0)
    seen = float(np.asarray(batch.tokens).sum()) + add
    params = state.params if bad else jax.tree.map(lambda leaf: np.asarray(leaf) * 0.5 + seen, state.params)
    guard = guard._replace(
        consecutive=consecutive, lr_scale=np.float32(lr_scale), skipped=guard.skipped + np.int32(bad)
    )
    numbers: dict[str, Any] = dict.fromkeys(StepMetrics._fields, np.float32(0))
    numbers |= {"consecutive": consecutive, "skipped": guard.skipped, "lr_scale": guard.lr_scale, "distill": None}
    numbers |= {"reason": np.int32(Reason.LOSS), "leaf": np.int32(-1), "propagators": _NO_PROPAGATORS}
    return state.replace(step=np.int32(state.step) + np.int32(1), params=params, opt_state=guard), StepMetrics(
        **numbers
    )


@contextlib.contextmanager
def in_place_of_programs() -> Iterator[None]:
    """Runs begin with zeros, and the loss of a validation is the number of tokens of its batches."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "init_state", _zero_state)
        patch.setattr(evaluation, "make_eval_step", lambda config: _evaluate)
        patch.setattr(loop.LanguageModel, "generate", lambda self, prompt: prompt)
        yield


def _zero_state(config: Config) -> TrainState:
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), abstract_state(config))
    return zeros.replace(stage=stage_state(stages_of(config)[0]) if config.training.stages else None)


def _evaluate(parts: Any, batch: Any) -> EvalMetrics:
    sums = LossSums(loss=np.float32(0), nll=np.float32(batch.tokens.size), weight=np.float32(1), divergence=None)
    return EvalMetrics(sums, _NO_PROPAGATORS, {})
