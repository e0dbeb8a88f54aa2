"""What rounding the weights of a model costs: the loss on held-out text, before and after."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import NamedTuple

from sem_jax.config import MeshConfig
from sem_jax.data import DataError, open_dataset
from sem_jax.errors import SemJaxError
from sem_jax.inference.language_model import LanguageModel
from sem_jax.sharing.quantise import Quantisation
from sem_jax.sharing.weights import rounded
from sem_jax.training.evaluation import Evaluator
from sem_jax.training.workdir import data_fingerprint, with_own_tokenizer

_log = logging.getLogger(__name__)


class Losses(NamedTuple):
    """On the validation split."""

    nll: float  # nats a token
    bits_per_byte: float


class Rounding(NamedTuple):
    """How the weights of a model are rounded, and what it costs."""

    how: Quantisation
    before: Losses | None = None  # both None: not measured
    after: Losses | None = None


def measure_rounding(model: LanguageModel, workdir: str | Path, how: Quantisation) -> Rounding:
    """Evaluates a model with its weights as they are and as they will be read, on the same batches of its run.

    Where the data of the run cannot be opened, a warning says why, and nothing is measured.

    Args:
      model: of the run.
      workdir: of the run.
      how: to round.

    Raises:
      CheckpointError: a weight is not finite, or too large to be rounded.
    """
    parts = rounded(model.parts, how)
    config = dataclasses.replace(with_own_tokenizer(model.config, workdir), mesh=MeshConfig(data=1))
    try:
        dataset = open_dataset(config.data, config.training.seed, config.training.global_batch)
        if data_fingerprint(workdir) != dataset.fingerprint:
            raise DataError("text or split are not those of the run")
        evaluator = Evaluator(config, dataset)
    except SemJaxError as error:
        _log.warning("the loss that rounding costs is not measured: %s", error)
        return Rounding(how)
    values = [evaluator(each).values for each in (model.parts, parts)]
    return Rounding(how, *(Losses(float(each["nll"]), float(each["bits_per_byte"])) for each in values))


def cost_line(rounding: Rounding) -> str:
    """The cost in one line.

    >>> cost_line(Rounding(Quantisation(4), Losses(2.5, 1.5), Losses(2.625, 1.5625)))
    'validation loss 2.5000 nats/token, rounded to 4 bits 2.6250 (+0.1250)'
    """
    if rounding.before is None or rounding.after is None:
        return f"rounded to {rounding.how.bits} bits; what that costs is not measured"
    before, after = rounding.before.nll, rounding.after.nll
    return (
        f"validation loss {before:.4f} nats/token, rounded to {rounding.how.bits} bits {after:.4f} "
        f"({after - before:+.4f})"
    )
