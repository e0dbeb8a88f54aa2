"""The configuration: a `ConfigDict` at the edge, frozen typed dataclasses inside.

A config file returns `default()` with a few fields changed; the command line overrides single fields; `build` turns
the result into dataclasses once, and everything that is impossible, unknown or of the wrong type is an error there.

A new field is one line in the file of its group: name, default, meaning, unit and range. `--help`,
docs/configuration.md, validation and its messages follow from that line. Only a rule between fields is written out, in
rules.py.
"""

from sem_jax.config.build import build, default, to_config_dict
from sem_jax.config.change import lookup, override, with_posterior_temperature, with_vocabulary
from sem_jax.config.data import DataConfig
from sem_jax.config.experiment import Config
from sem_jax.config.fields import ConfigError
from sem_jax.config.mesh import MeshConfig
from sem_jax.config.model import (
    EncoderConfig,
    MixerConfig,
    ModelConfig,
    PropagatorConfig,
    Remat,
    ScanMethod,
    Solver,
    Transport,
)
from sem_jax.config.optimizer import OptimizerConfig, parse_factors
from sem_jax.config.sampling import SamplingConfig
from sem_jax.config.stages import Stage, at_stage, stages_of
from sem_jax.config.training import TrainingConfig, profiled_steps, tracker_names
from sem_jax.config.upgrade import upgrade

__all__ = [
    "Config",
    "ConfigError",
    "DataConfig",
    "EncoderConfig",
    "MeshConfig",
    "MixerConfig",
    "ModelConfig",
    "OptimizerConfig",
    "PropagatorConfig",
    "Remat",
    "SamplingConfig",
    "ScanMethod",
    "Solver",
    "Stage",
    "TrainingConfig",
    "Transport",
    "at_stage",
    "build",
    "default",
    "lookup",
    "override",
    "parse_factors",
    "profiled_steps",
    "stages_of",
    "to_config_dict",
    "tracker_names",
    "upgrade",
    "with_posterior_temperature",
    "with_vocabulary",
]
