"""Recorded models: their files, and what is in them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sem_jax.interop import DEFAULTS

GOLDENS = Path(__file__).resolve().parent / "goldens"


def load(name: str) -> dict[str, np.ndarray]:
    """Every array of a recorded file, by name."""
    with np.load(GOLDENS / f"{name}.npz") as file:
        return {key: file[key] for key in file.files}


def group(recorded: Mapping[str, np.ndarray], name: str) -> dict[str, np.ndarray]:
    """The entries called name/..., without that prefix."""
    return {key.removeprefix(name + "/"): value for key, value in recorded.items() if key.startswith(name + "/")}


def settings(recorded: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The recorded configuration."""
    return json.loads(str(recorded["config"]))


def overrides(recorded: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The part of the configuration that no shape tells, for `import_state_dict`."""
    return {name: settings(recorded)[name] for name in DEFAULTS}
