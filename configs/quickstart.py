"""A small SEM on the Python standard library: learns visibly in about five minutes on two CPU cores.

Command:  python -m sem_jax.train --config=configs/quickstart.py --workdir=runs/quickstart
"""

from ml_collections import ConfigDict

from sem_jax.config import default


def get_config() -> ConfigDict:
    """The experiment."""
    config = default()
    config.name = "quickstart"
    config.training.max_steps = 1000
    return config
