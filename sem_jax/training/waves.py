"""What an evaluation sees of the wave on its way through the layers."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array

from sem_jax.core.statistics import phase_coherence, root_mean_square
from sem_jax.modules.probe import Observer


class WaveStats(NamedTuple):
    """The wave after a layer, the mean over tokens; scalars, or [L] of all layers of a kind."""

    power: Array  # mean |ψ|² over channels and tokens
    coherence: Array  # 0 to 1, see `sem_jax.core.statistics.phase_coherence`


class _Last:
    """A probe that keeps what the last part of a layer puts out, which is the layer's own output."""

    def __init__(self) -> None:
        self.wave = jnp.full((1, 1), jnp.nan, jnp.complex64)  # of a layer that shows no part

    def __call__(self, name: str, value: Array, /) -> Array:
        """The value."""
        del name
        self.wave = value
        return value


class WaveObserver(Observer):
    """Keeps `WaveStats` of every module, without a second pass."""

    def probe(self, slots: Any) -> _Last:
        """See `Observer`."""
        del slots
        return _Last()

    def seen(self, probe: Any, module: Any, state: Any, context: Any) -> WaveStats:
        """See `Observer`."""
        del module, state, context
        return WaveStats(jnp.square(root_mean_square(probe.wave)), phase_coherence(probe.wave))
