"""sem_jax: the Signal-Entropic Model, a complex-valued, wave-like language model, in JAX.

In a notebook:

    import sem_jax
    model = sem_jax.load("runs/quickstart")
    print(model.generate("def ", max_tokens=200, seed=0))
    log_probs = model.log_probs(model.encode_prompt("import os")[None])  # [1, S, V], nats
"""

from sem_jax.api import init, load
from sem_jax.config import Config, ConfigError, build, default
from sem_jax.data import DataError
from sem_jax.inference.language_model import LanguageModel
from sem_jax.training.checkpoint import CheckpointError

__all__ = ["CheckpointError", "Config", "ConfigError", "DataError", "LanguageModel", "build", "default", "init", "load"]
