"""A readout between the Born rule and the softmax: P(v) ∝ e^{β_v}|W_v·ψ|^{2γ}, mixed with a share of the uniform one.

The Born rule, γ = 1, cannot be sharp for more tokens than there are channels (`sem_jax.core.coherent`); a power can,
but its logits 2γ·log|W_v·ψ| are still singular where an amplitude vanishes.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from sem_jax.config import ModelConfig
from sem_jax.core.born import TINY, log_mixed
from sem_jax.core.complex_ops import HIGHEST, abs_sq, complex_matmul
from sem_jax.modules.model import SEM
from sem_jax.modules.readout import Readout

GAMMA = 4


class PowerReadout(Readout):
    """From ψ to P(v) ∝ e^{β_v}|W_v·ψ|^{2γ} over the vocabulary."""

    def log_probs(self, psi: Array) -> Array:
        """log P of every token: [..., D] to [..., V]."""
        return self._log_probs(psi)[0]

    def target_log_prob(self, psi: Array, targets: Array) -> tuple[Array, Array]:
        """See `Readout`."""
        log_probs, log_z = self._log_probs(psi)
        return jnp.take_along_axis(log_probs, targets[..., None], axis=-1)[..., 0], log_z

    def _log_probs(self, psi: Array) -> tuple[Array, Array]:
        power = abs_sq(complex_matmul(psi, self.weight[...], HIGHEST))
        logits = self.bias[...] + GAMMA * jnp.log(power + TINY)
        log_z = jax.nn.logsumexp(logits, axis=-1)
        return log_mixed(jnp.exp(logits - log_z[..., None]), power.shape[-1], self.floor), log_z


class PowerSEM(SEM):
    """The SEM with that readout."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        super().__init__(config, rngs)
        self.readout = PowerReadout(config, rngs)
