"""What all commands share: an expected error is one line and exit status 1, not a traceback."""

from __future__ import annotations

import functools
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from absl import app, flags

from sem_jax.config import ConfigError
from sem_jax.data import DataError
from sem_jax.interop import InteropError
from sem_jax.training.checkpoint import CheckpointError
from sem_jax.training.metrics import MetricsError
from sem_jax.training.monitor import TrainingDiverged

EXPECTED = (ConfigError, DataError, InteropError, CheckpointError, MetricsError, TrainingDiverged)


def reporting_errors(main: Callable[[list[str]], Any]) -> Callable[[list[str]], Any]:
    """Wraps the main function of a command, which takes flags only."""

    @functools.wraps(main)
    def run(argv: list[str]) -> Any:
        if len(argv) > 1:
            raise app.UsageError(f"unknown argument {argv[1]!r}")
        enable_compilation_cache()
        logging.getLogger("jax").setLevel(logging.WARNING)  # it reports every accelerator that is absent
        try:
            return main(argv)
        except EXPECTED as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(1)

    return run


def parse_flags(argv: list[str]) -> list[str]:
    """For `absl.app.run(flags_parser=...)`: a missing config file or field is an error of one line, too."""
    try:
        arguments = app.parse_flags_with_usage(argv)
        if "config" in flags.FLAGS:
            getattr(flags.FLAGS["config"].value, "keys", None)  # a file that could not be loaded raises only now
        return arguments
    except AttributeError as error:  # ml_collections' own, around a KeyError with a suggestion
        reason = f"--config has no field {error.args[0].args[0]}"
    except OSError as error:
        reason = f"--config: {error}"
    print("error:", " ".join(reason.split()), file=sys.stderr)
    sys.exit(1)


def enable_compilation_cache() -> None:
    """Keeps compiled programs between runs, beside the token cache; JAX_COMPILATION_CACHE_DIR chooses another place."""
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        cache = Path(os.environ.get("SEM_JAX_CACHE") or Path.home() / ".cache" / "sem_jax")
        jax.config.update("jax_compilation_cache_dir", str(cache / "xla"))
