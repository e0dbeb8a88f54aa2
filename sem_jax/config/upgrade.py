"""Records of earlier versions, in the fields of this one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sem_jax.config.fields import ConfigError


def upgrade(values: Mapping[str, Any]) -> dict[str, Any]:
    """The nested values of a record that version 0.1.0, 0.2.0 or this one has written, in the fields of this one.

    A damaged record stays as it is: `build` names what is wrong with it.

    Raises:
      ConfigError: the record needs something that is gone.
    """
    model = values.get("model", {})
    groups = [model.get(name, {}) for name in ("encoder", "mixer", "propagator")] if isinstance(model, Mapping) else []
    if not groups or not all(isinstance(group, Mapping) for group in groups):
        return dict(values)
    encoder, mixer, propagator = map(dict, groups)
    if encoder.get("transport") == "population":
        raise ConfigError(
            "config.model.encoder.transport = population is gone; read this run with sem_jax 0.1.0, or train another "
            "one with row_softmax"
        )
    encoder.pop("population_rate", None)
    encoder.setdefault("position_phase", True)  # there was no encoder without
    if "kind" not in mixer:
        mixer["kind"] = "fixed"  # there was no other
        if mixer.get("scan") == "chunked":
            mixer["scan"] = "auto"  # it evaluated the same recurrence
    mixer.setdefault("input_map", "spinor_gate")  # there was no mixer without
    # Nor was there another start, or any bound.
    mixer = {"selective_init": "mamba3", "rotation": "affine", "output_norm": False, **mixer}
    propagator.setdefault("kerr_saturation", 0.0)
    if "cg_tol" in propagator:
        propagator["solver_tol"] = propagator.pop("cg_tol")
    # Before the order of the layers could be chosen, it was this one.
    order = {"layout": "mixers_first", "blocks": "mixers,propagators"}
    changed = {"encoder": encoder, "mixer": mixer, "propagator": propagator}
    return {**values, "model": {**order, **model, **changed}}
