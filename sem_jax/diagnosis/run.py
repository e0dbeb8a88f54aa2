"""From a configuration or a run to a `Diagnosis`."""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path

import jax
import numpy as np

from sem_jax.config import Config, with_posterior_temperature, with_vocabulary
from sem_jax.data import Batch, open_dataset
from sem_jax.diagnosis.parameters import parameter_stats
from sem_jax.diagnosis.record import Diagnosis, collect
from sem_jax.diagnosis.suspects import find_suspects
from sem_jax.diagnosis.walk import measure
from sem_jax.optim import leaf_names
from sem_jax.training.curriculum import Curriculum
from sem_jax.training.retention import Choice
from sem_jax.training.state import TrainState, init_state
from sem_jax.training.workdir import restore_run, with_own_tokenizer

_measure = partial(jax.jit, static_argnums=2)(measure)


def diagnose(config: Config, state: TrainState, batch: Batch) -> Diagnosis:
    """Walks a model forward and backward over a batch and looks for suspects.

    Args:
      config: the experiment.
      state: parameters, buffers and moments. The parameters are those that training moves, not their average.
      batch: at most `training.micro_batch` sequences are read, what training holds in memory at once.
    """
    batch = Batch(*(rows[: config.training.micro_batch] for rows in batch))
    measured = _measure(state.model, batch, config.optimizer.unitary_lambda)
    parameters = parameter_stats(config, state, measured.gradients)
    found = collect(config, state, jax.device_get(measured), parameters, damaged_leaves(state), batch.weights.size)
    return dataclasses.replace(found, suspects=find_suspects(config, found))


def damaged_leaves(state: TrainState) -> list[str]:
    """Names of the arrays of the state, parameters aside, that hold numbers which are not finite."""
    others = jax.device_get(state.replace(params={}))
    named = zip(leaf_names(others, ()), jax.tree.leaves(others), strict=True)
    return [name for name, leaf in named if not np.isfinite(leaf).all()]


def diagnose_config(config: Config) -> Diagnosis:
    """A fresh model of a configuration, on its first training batch.

    Raises:
      ConfigError, DataError: the configuration or its data cannot be used.
    """
    dataset = open_dataset(config.data, config.training.seed, config.training.global_batch)
    config = with_posterior_temperature(with_vocabulary(config, dataset.tokenizer.vocab_size), dataset.train_tokens)
    return diagnose(config, init_state(config), dataset.train.batch(0))


def diagnose_run(workdir: str | Path, step: Choice = None, fallback: bool = False) -> Diagnosis:
    """A run at a checkpoint, on the training batch that came next.

    Args:
      workdir: of `python -m sem_jax.train`.
      step: which checkpoint; None is the newest, "best" the one of the lowest validation loss.
      fallback: whether to take the newest older one that is intact in place of a damaged one.

    Raises:
      ConfigError, DataError, CheckpointError: the workdir is not one, or what it holds or its data cannot be used.
    """
    run = restore_run(workdir, step, fallback)
    training = run.config.training
    data = with_own_tokenizer(run.config, workdir).data
    dataset = open_dataset(data, training.seed, training.global_batch)
    curriculum = Curriculum(run.config, dataset)
    curriculum.resume(run.state)
    return diagnose(curriculum.config, run.state, curriculum.batch(run.step))
