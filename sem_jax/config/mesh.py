"""The devices of a run, as a grid."""

from __future__ import annotations

from dataclasses import dataclass

from sem_jax.config.fields import setting

MOST_DEVICES = 65_536


@dataclass(frozen=True)
class MeshConfig:
    """The devices of a run: each holds its share of every batch, and those along `fsdp` share one copy of the state."""

    data: int = setting(
        0,
        "copies of the state; 0: as many as all devices allow",
        unit="groups of devices",
        at_least=0,
        at_most=MOST_DEVICES,
    )
    fsdp: int = setting(
        1,
        "devices over which each copy's large arrays are spread; 1: each device holds all",
        unit="devices",
        at_least=1,
        at_most=MOST_DEVICES,
    )
