"""Examines a model component by component and names suspects: see docs/diagnose.md.

python -m sem_jax.diagnose --workdir=runs/quickstart
python -m sem_jax.diagnose --config=configs/max_aggression.py:smoke --json=diagnosis.json
"""

from __future__ import annotations

import json
from pathlib import Path

from absl import app, flags
from ml_collections import config_flags

from sem_jax.cli import checkpoint_flags, parse_flags, reporting_errors
from sem_jax.config import build
from sem_jax.data.files import require_writable, write_atomically
from sem_jax.diagnosis.run import diagnose_config, diagnose_run
from sem_jax.diagnosis.table import format_diagnosis

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of a run.")
_CHECKPOINT, _FALLBACK = checkpoint_flags()
_CONFIG = config_flags.DEFINE_config_file("config", None, "Experiment of which a fresh model is examined.")
_JSON = flags.DEFINE_string("json", None, "Write all numbers to this file, too.")


@reporting_errors
def main(argv: list[str]) -> None:
    """Runs the command line."""
    del argv
    workdir, config, step = _WORKDIR.value, _CONFIG.value, _CHECKPOINT.value
    if (workdir is None) == (config is None):
        raise app.UsageError("give --workdir to examine a run, or --config to examine a fresh model")
    if (step is not None or _FALLBACK.value) and workdir is None:
        raise app.UsageError("--checkpoint and --fallback need --workdir")
    if _JSON.value is not None:
        require_writable(_JSON.value)
    found = diagnose_config(build(config)) if workdir is None else diagnose_run(workdir, step, _FALLBACK.value)
    print(format_diagnosis(found))
    if _JSON.value is not None:
        write_atomically(Path(_JSON.value), json.dumps(found.to_json(), indent=2, allow_nan=False) + "\n")


if __name__ == "__main__":
    app.run(main, flags_parser=parse_flags)
