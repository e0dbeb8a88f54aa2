"""The configuration of a workdir, to train on from its weights: those of a converted model, or of a stopped run.

What belongs to the data of a converted model is still free and given here, by --config.data.*.

Command:  python -m sem_jax.train --config=configs/from_workdir.py:DIR --workdir=DIR \
              --config.data.source=text --config.data.path=FILE
"""

from ml_collections import ConfigDict

from sem_jax.config import ConfigError, to_config_dict
from sem_jax.training.workdir import read_config, with_own_tokenizer


def get_config(workdir: str = "") -> ConfigDict:
    """The experiment of `workdir`, with its own tokenizer.

    Raises:
      ConfigError: there is no such workdir.
    """
    if not workdir:
        raise ConfigError("which workdir? Write --config=configs/from_workdir.py:DIR")
    return to_config_dict(with_own_tokenizer(read_config(workdir), workdir))
