"""Measures a model on held-out text: python -m sem_jax.evaluate --workdir=runs/quickstart."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

from absl import app, flags
from ml_collections import config_flags

from sem_jax.api import load
from sem_jax.cli import reporting_errors
from sem_jax.config import Config, build, default, override
from sem_jax.data import open_dataset
from sem_jax.training.evaluation import Evaluator
from sem_jax.training.health import convergence_warnings

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of a run.", required=True)
_STEP = flags.DEFINE_integer("step", None, "Checkpoint to use; without it, the newest.")
config_flags.DEFINE_config_dict("config", default(), "Fields that differ from the run's configuration.")


@reporting_errors
def main(argv: list[str]) -> None:
    """Runs the command line."""
    if len(argv) > 1:
        raise app.UsageError(f"unknown argument {argv[1]!r}")
    model = load(_WORKDIR.value, _STEP.value)
    config = _with_overrides(model.config)
    dataset = open_dataset(config.data, config.training.seed, config.training.global_batch)
    evaluation = Evaluator(model.parts.graphdef, config, dataset)(model.parts.params, model.parts.buffers)
    values = evaluation.values
    print(f"{model!r}")
    print(f"validation split of {config.data.source}, {dataset.validation_tokens:,} tokens")
    print(f"nats/token     {values['nll']:.4f}")
    print(f"bits/byte      {values['bits_per_byte']:.4f}")
    print(f"perplexity     {math.exp(values['nll']):.3f}")
    print(f"norm drift     {values['norm_drift']:.1e}")
    print(f"CG residual    {values['cg_residual']:.1e}")
    print(f"CG iterations  {values['cg_iterations']:.0f}")
    for warning in convergence_warnings(evaluation.propagators, config.model.propagator):
        print(f"warning: {warning}")


def _with_overrides(config: Config) -> Config:
    """The run's configuration with the fields of the command line, read with the run's own tokenizer."""
    changed = build(override(dataclasses.asdict(config), config_flags.get_override_values(flags.FLAGS["config"])))
    tokenizer_path = str(Path(_WORKDIR.value) / "tokenizer.json")
    return dataclasses.replace(changed, data=dataclasses.replace(changed.data, tokenizer_path=tokenizer_path))


if __name__ == "__main__":
    app.run(main)
