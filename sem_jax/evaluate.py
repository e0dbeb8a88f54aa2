"""Measures a model on held-out text, or on given tokens.

python -m sem_jax.evaluate --workdir=runs/quickstart
python -m sem_jax.evaluate --workdir=runs/imported --tokens=tokens.npy --dump=outputs.npz
"""

from __future__ import annotations

import dataclasses
import math
import sys

from absl import app, flags
from ml_collections import config_flags

from sem_jax.api import load
from sem_jax.cli import checkpoint_flags, one_line_errors, parse_flags, reporting_errors
from sem_jax.config import Config, ConfigError, DataConfig, MeshConfig, build, default, override
from sem_jax.data import open_dataset
from sem_jax.data.arrays import read_token_freqs, read_tokens, require_npz, write_arrays
from sem_jax.inference.language_model import LanguageModel
from sem_jax.training.evaluation import Evaluator
from sem_jax.training.health import convergence_warnings
from sem_jax.training.token_outputs import token_outputs
from sem_jax.training.workdir import data_fingerprint, with_own_tokenizer

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of a run, or an exported model.", required=True)
_CHECKPOINT, _FALLBACK = checkpoint_flags()
_TOKENS = flags.DEFINE_string("tokens", None, "Token ids [B, S] in a .npy file; without it, held-out text.")
_TOKEN_FREQS = flags.DEFINE_string("token_freqs", None, "Token frequencies [V] in a .npy file, for the transport cost.")
_DUMP = flags.DEFINE_string("dump", None, "Write what the model says about --tokens to this .npz file.")
# Fields that an evaluation reads. The model and its tokenizer are the run's own.
_OF_TOKENS = ["optimizer.unitary_lambda"]
_OWN = ("tokenizer", "tokenizer_path", "tokenizer_sample", "bpe_vocab_size")
_OF_TEXT = [f"data.{field.name}" for field in dataclasses.fields(DataConfig) if field.name not in _OWN]
_OF_TEXT += ["training.global_batch", "training.eval_batches"]
with one_line_errors():  # the fields of the command line are read here already
    config_flags.DEFINE_config_dict("config", default(), "Fields that differ from the run's configuration.")


@reporting_errors
def main(argv: list[str]) -> None:
    """Runs the command line."""
    del argv
    if _TOKENS.value is None and (_TOKEN_FREQS.value is not None or _DUMP.value is not None):
        raise app.UsageError("--token_freqs and --dump need --tokens")
    if _DUMP.value is not None:
        require_npz(_DUMP.value)  # before a computation whose result could not be kept
    model = load(_WORKDIR.value, _CHECKPOINT.value, _FALLBACK.value)
    config = _with_overrides(model.config)
    if _TOKENS.value is None:
        _evaluate_text(model, config)
    else:
        _evaluate_tokens(model, config, _TOKENS.value)


def _evaluate_text(model: LanguageModel, config: Config) -> None:
    dataset = open_dataset(config.data, config.training.seed, config.training.global_batch)
    if data_fingerprint(_WORKDIR.value) not in (None, dataset.fingerprint):
        print("warning: these are not the data that the run was trained on: text or split differ", file=sys.stderr)
    one_device = dataclasses.replace(config, mesh=MeshConfig(data=1))
    evaluation = Evaluator(one_device, dataset)(model.parts)
    values = evaluation.values
    print(f"{model!r}")
    print(f"validation split of {config.data.source}, {dataset.validation_tokens:,} tokens")
    print(f"nats/token     {values['nll']:.4f}")
    print(f"bits/byte      {values['bits_per_byte']:.4f}")
    print(f"perplexity     {math.exp(values['nll']):.3f}")
    print(f"norm drift     {values['norm_drift']:.1e}")
    print(f"residual       {values['residual']:.1e}")
    print(f"iterations     {values['iterations']:.0f}")
    for warning in convergence_warnings(evaluation.propagators, config.model.propagator):
        print(f"warning: {warning}")


def _evaluate_tokens(model: LanguageModel, config: Config, path: str) -> None:
    vocab_size = config.model.vocab_size
    tokens = read_tokens(path, vocab_size)
    freqs = None if _TOKEN_FREQS.value is None else read_token_freqs(_TOKEN_FREQS.value, vocab_size)
    outputs = token_outputs(model.parts, tokens, freqs, config.optimizer.unitary_lambda)
    print(f"{model!r}")
    for name in ("loss", "nll", "unitary_divergence"):
        print(f"{name:18s} {outputs[name]:.6f}")
    if _DUMP.value is not None:
        write_arrays(_DUMP.value, outputs)
        print(f"{_DUMP.value}: {', '.join(outputs)}")


def _with_overrides(config: Config) -> Config:
    """The run's configuration with the fields of the command line, read with the run's own tokenizer.

    Raises:
      ConfigError: a field is given that has no influence here, or that the run has decided.
    """
    changes = config_flags.get_override_values(flags.FLAGS["config"])
    what, useful = ("held-out text", _OF_TEXT) if _TOKENS.value is None else ("--tokens", _OF_TOKENS)
    for field in changes:
        if field not in useful:
            raise ConfigError(
                f"--config.{field} changes nothing in an evaluation of {what}; leave it out. What can be given is "
                f"{', '.join(useful)}"
            )
    changed = build(override(dataclasses.asdict(config), changes))
    return with_own_tokenizer(changed, _WORKDIR.value)


if __name__ == "__main__":
    app.run(main, flags_parser=parse_flags)
