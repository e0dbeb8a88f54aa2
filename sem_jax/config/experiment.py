"""One experiment: all groups together."""

from __future__ import annotations

from dataclasses import dataclass, field

from sem_jax.config.data import DataConfig
from sem_jax.config.fields import setting
from sem_jax.config.mesh import MeshConfig
from sem_jax.config.model import ModelConfig
from sem_jax.config.optimizer import OptimizerConfig
from sem_jax.config.sampling import SamplingConfig
from sem_jax.config.training import TrainingConfig


@dataclass(frozen=True)
class Config:
    """One experiment."""

    name: str = setting("sem", "how reports and messages call the experiment")
    model: ModelConfig = field(default_factory=ModelConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    data: DataConfig = field(default_factory=DataConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)
