"""sem_jax: the Signal-Entropic Model, a complex-valued, wave-like language model, in JAX.

In a notebook:

    import sem_jax
    model = sem_jax.load("runs/quickstart")
    print(model.generate("def ", max_tokens=200, seed=0))
    log_probs = model.log_probs(model.encode_prompt("import os")[None])  # [1, S, V], nats

`import sem_jax` takes about a second, most of it for JAX, Flax and Orbax.
"""

from sem_jax.api import convert, export, init, load, train
from sem_jax.config import Config, ConfigError, build, default
from sem_jax.data import DataError
from sem_jax.errors import SemJaxError
from sem_jax.inference.language_model import LanguageModel
from sem_jax.interop import InteropError
from sem_jax.training.leaf_record import CheckpointError
from sem_jax.training.metrics import MetricsError
from sem_jax.training.monitor import TrainingDiverged
from sem_jax.training.processes import ProcessError

__version__ = "0.2.0"  # setup.cfg reads it from here

__all__ = [
    "CheckpointError",
    "Config",
    "ConfigError",
    "DataError",
    "InteropError",
    "LanguageModel",
    "MetricsError",
    "ProcessError",
    "SemJaxError",
    "TrainingDiverged",
    "__version__",
    "build",
    "convert",
    "default",
    "export",
    "init",
    "load",
    "train",
]
