"""The state of a run: one pytree, all that a checkpoint holds."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from sem_jax.config import Config, Stage, stages_of
from sem_jax.modules.model import ModelParts, abstract_model, init_model
from sem_jax.optim import make_optimizer
from sem_jax.training.mesh import make_layout

Params = dict[str, Any]


class StageState(NamedTuple):
    """Where a run stands in its curriculum; int32 scalars."""

    number: Array  # of the stage, from 1
    begun: Array  # steps taken before it
    first_batch: Array  # number of its first batch among those of its size
    rest: Array  # tokens read before it that do not fill a batch of its size
    seq_length: Array
    global_batch: Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """Everything that the next step depends on besides the configuration and the data.

    The data position is `step` itself, and random numbers are derived from (seed, step), so nothing else is saved.
    """

    step: Array  # scalar int32, steps taken, bad ones included
    params: Params
    buffers: Params  # graphs and rotation frequencies
    opt_state: Any  # `FiniteGuardState`
    ema: Params | None  # moving average of the parameters, None where the configuration keeps none
    # Structure of the model; not saved, for it follows from the configuration.
    graphdef: Any = field(metadata={"static": True})
    stage: StageState | None = None  # None where the configuration has no stages

    @property
    def model(self) -> ModelParts:
        """The model that training moves."""
        return ModelParts(self.graphdef, self.params, self.buffers)

    @property
    def evaluated(self) -> ModelParts:
        """The model that evaluation, samples and `sem_jax.load` use: of the average where one is kept."""
        return self.model if self.ema is None else self.model.replace(params=self.ema)

    def replace(self, **changes: Any) -> TrainState:
        """A copy with other values of some fields."""
        return replace(self, **changes)


def init_state(config: Config) -> TrainState:
    """The state before the first step of a fresh model, laid out over `config.mesh`.

    The parameters are drawn whole on one device, so that they are the same to the bit on every mesh; moments and
    average, which are larger, never are whole.

    Raises:
      ConfigError: the mesh fits neither devices nor batches, or a path of the optimizer fits no parameter.
    """
    layout = make_layout(config)
    shardings = layout.of_state(abstract_state(config))
    parts = layout.place(init_model(config.model, config.training.seed))
    return jax.jit(lambda parts: start_state(config, parts), out_shardings=shardings)(parts)


def start_state(config: Config, parts: ModelParts) -> TrainState:
    """The state before the first step of a model."""
    ema = jax.tree.map(jnp.copy, parts.params) if config.training.ema_decay else None
    opt_state = jax.jit(optimizer_of(config, parts).init)(parts.params)
    stage = stage_state(stages_of(config)[0]) if config.training.stages else None
    return TrainState(jnp.zeros((), jnp.int32), parts.params, parts.buffers, opt_state, ema, parts.graphdef, stage)


def stage_state(stage: Stage, number: int = 1, begun: int = 0, first_batch: int = 0, rest: int = 0) -> StageState:
    """A run in a stage, in the first if nothing else is given; arguments as the fields of `StageState`."""
    return StageState(*map(jnp.int32, (number, begun, first_batch, rest, stage.seq_length, stage.global_batch)))


def abstract_state(config: Config) -> TrainState:
    """The state's structure, shapes and dtypes; no array is computed."""
    return jax.eval_shape(lambda parts: start_state(config, parts), abstract_model(config.model))


def leaves_of_first_stage(config: Config) -> dict[str, np.ndarray]:
    """What leaves a checkpoint lacks that was saved before the run was given stages, by name."""
    if not config.training.stages:
        return {}
    first = stage_state(stages_of(config)[0])
    return {f"stage/{name}": np.asarray(value) for name, value in first._asdict().items()}


def optimizer_of(config: Config, parts: ModelParts) -> optax.GradientTransformationExtraArgs:
    """The optimizer of a run, with the weight decay that the model's parameters ask for."""
    training = config.training
    return make_optimizer(config.optimizer, training.max_steps, training.seed, parts.decays())
