"""What an evaluation sees of the wave on its way through the layers."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array

from sem_jax.core.statistics import phase_coherence, root_mean_square
from sem_jax.modules.probe import OutputObserver


class WaveStats(NamedTuple):
    """The wave after a layer, the mean over tokens; scalars, or [L] of all layers of a kind."""

    power: Array  # mean |ψ|² over channels and tokens
    coherence: Array  # 0 to 1, see `sem_jax.core.statistics.phase_coherence`


class WaveObserver(OutputObserver):
    """Keeps `WaveStats` of every module, without a second pass."""

    def seen(self, probe: Any, module: Any, state: Any, context: Any) -> WaveStats:
        """See `Observer`."""
        wave = super().seen(probe, module, state, context)
        return WaveStats(jnp.square(root_mean_square(wave)), phase_coherence(wave))
