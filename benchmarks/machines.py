"""Machines of several devices by their public figures, and how much of them a step would use.

    arithmetic = FLOPs / (peak x UTILISATION),    communication = bytes sent / bandwidth
    efficiency = arithmetic / (arithmetic + communication), as if nothing of both overlapped

Peaks are those of JAX's default precision, the fastest that a step can use. A slower device sends as much in a longer
step, so that as far as arithmetic goes the efficiency is a lower bound.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

UTILISATION = 0.3  # of the peak; assumed


class Machine(NamedTuple):
    """Public figures of the devices of a machine."""

    name: str
    devices: int
    flops: float  # at the peak of one device, a second
    bandwidth: float  # of the links of one device that a ring uses, bytes a second in one direction
    memory: float  # bytes of one device


# TPU: cloud.google.com/tpu/docs/v5e and v5p, the peaks for bfloat16. Interconnect of a chip: v5e 400 GB/s, both
# directions of four links together; v5p 1200 GB/s, of six. A slice of 2 x 4 is no torus: a ring through it uses two of
# the four links. 16 x 16 and 4 x 4 x 4 are, and use all (jax-ml.github.io/scaling-book, "How to think about TPUs").
# H100 SXM: nvidia.com/en-us/data-center/h100, TF32 without sparsity; NVLink 900 GB/s, both directions together.
MACHINES = (
    Machine("v5e, 8 chips", 8, 197e12, 400e9 / 2 / 2, 16e9),
    Machine("8 x H100", 8, 495e12, 900e9 / 2, 80e9),
    Machine("v5p, 64 chips", 64, 459e12, 1200e9 / 2, 95e9),
    Machine("v5e, 256 chips", 256, 197e12, 400e9 / 2, 16e9),
)


def sent(collectives: Mapping[str, float], devices: int) -> float:
    """Bytes that a device of a ring sends, given the bytes of the results of its collectives by kind.

    A ring sends (n - 1)/n of what it gathers, twice that of what it all-reduces, and n - 1 times a scattered result.

    >>> sent({"all-reduce": 8.0, "all-gather": 8.0, "reduce-scatter": 2.0}, devices=4)
    24.0
    """
    share = (devices - 1) / devices
    weights = {"all-reduce": 2 * share, "reduce-scatter": devices - 1, "collective-permute": 1}
    return sum(weights.get(kind, share) * size for kind, size in collectives.items())


class Prediction(NamedTuple):
    """A step on a machine, in seconds."""

    arithmetic: float
    communication: float

    @property
    def efficiency(self) -> float:
        """The share of the step that is arithmetic, 0 to 1."""
        return self.arithmetic / (self.arithmetic + self.communication)


def predict(machine: Machine, flops: float, bytes_sent: float) -> Prediction:
    """The step of a device that computes and sends so much."""
    return Prediction(flops / (machine.flops * UTILISATION), bytes_sent / machine.bandwidth)
