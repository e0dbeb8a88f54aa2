"""Loss of a model on the validation split."""

from __future__ import annotations

from typing import NamedTuple

import jax
import numpy as np

from sem_jax.config import Config
from sem_jax.data import Batch, Dataset
from sem_jax.modules.model import ModelParts
from sem_jax.modules.propagator import PropagatorStats
from sem_jax.training.mesh import make_layout
from sem_jax.training.metrics import bits_per_byte
from sem_jax.training.step import EvalMetrics, make_eval_step
from sem_jax.training.waves import WaveStats


class Evaluation(NamedTuple):
    """What an evaluation found."""

    values: dict[str, float]  # by the names of metrics.jsonl
    propagators: PropagatorStats  # each [L], the worst of all batches
    waves: dict[str, WaveStats]  # by kind of block, each [L], the mean of all batches


class Evaluator:
    """Evaluates on the validation split, on `config.mesh`: the same batches every time, compiled once.

    Args:
      config: of the model; `training.eval_batches` batches are used, or fewer if the split holds fewer.
      dataset: holds the split.
    """

    def __init__(self, config: Config, dataset: Dataset):
        self._step = make_eval_step(config)
        self._layout, self._global_batch = make_layout(config), config.training.global_batch
        rows = self._layout.own_rows(self._global_batch)
        batches = dataset.validation.evaluation_batches(config.training.eval_batches)
        self._batches = [Batch(*(each[rows] for each in batch)) for batch in batches]
        self._bytes_per_token = dataset.bytes_per_token

    def __call__(self, parts: ModelParts) -> Evaluation:
        """Means over all target tokens: nats a token and bits a byte are those of the normalised distribution."""
        # One after the other: many programs at once whose devices, virtual ones of a CPU, wait for each other leave no
        # thread for the one that all wait for.
        metrics = [jax.device_get(self._measure(parts, batch)) for batch in self._batches]
        sums = [np.array([m.sums.loss, m.sums.nll, m.sums.weight], np.float64) for m in metrics]
        loss, nll, weight = np.sum(sums, axis=0)
        worst = jax.tree.map(lambda *x: np.max(x, axis=0), *[m.propagators for m in metrics])
        waves = jax.tree.map(lambda *x: np.mean(x, axis=0), *[m.waves for m in metrics])
        values = {
            "loss": loss / weight,
            "nll": nll / weight,
            "bits_per_byte": bits_per_byte(nll / weight, self._bytes_per_token),
            "residual": float(np.max(worst.residual, initial=0)),
            "iterations": int(np.max(worst.iterations, initial=0)),
            "norm_drift": float(np.max(worst.norm_drift, initial=0)),
        }
        return Evaluation(values, worst, waves)

    def is_finite(self, parts: ModelParts) -> bool:
        """Whether the loss of the first batch is a finite number."""
        return bool(np.isfinite(jax.device_get(self._measure(parts, self._batches[0]).sums.loss)))

    def _measure(self, parts: ModelParts, batch: Batch) -> EvalMetrics:
        return self._step(parts, self._layout.place_batch(batch, self._global_batch))
