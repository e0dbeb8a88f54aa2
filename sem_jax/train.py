"""Trains a model: python -m sem_jax.train --config=configs/quickstart.py --workdir=runs/quickstart."""

from __future__ import annotations

import sys

from absl import app, flags
from ml_collections import config_flags

from sem_jax.cli import LastingOutput, parse_flags, reporting_errors, this_command
from sem_jax.config import build
from sem_jax.config.describe import help_text
from sem_jax.report import write_report
from sem_jax.training.host import keep_freed_memory
from sem_jax.training.loop import train

_UNFINISHED = 75  # EX_TEMPFAIL of sysexits.h: `train && evaluate` must not go on with half a run
_CONFIG = config_flags.DEFINE_config_file(
    "config", None, f"Experiment, such as configs/quickstart.py. Any field of it can be given, too:\n{help_text()}"
)
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder of the run: metrics, checkpoints, configuration.", required=True
)


@reporting_errors
def main(argv: list[str]) -> None:
    """Runs the command line."""
    del argv
    keep_freed_memory()
    config = build(_CONFIG.value)
    with LastingOutput(sys.stdout) as output:
        result = train(config, _WORKDIR.value)
        if result.finished:
            print(write_report(_WORKDIR.value))
        else:
            print(f"stopped and saved at step {result.step}; go on with: {this_command()}")
        output.flush()
    if output.lost is not None:
        raise output.lost
    if not result.finished:
        sys.exit(_UNFINISHED)


if __name__ == "__main__":
    flags.mark_flag_as_required("config")
    app.run(main, flags_parser=parse_flags)
