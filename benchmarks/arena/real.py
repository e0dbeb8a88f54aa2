"""What all real-valued rivals share: a model whose stream [B, S, D] is real, with a plain embedding and a softmax."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from sem_jax.config import ModelConfig
from sem_jax.core.complex_ops import real_matmul
from sem_jax.modules.block import Context
from sem_jax.modules.encoder import Encoder
from sem_jax.modules.model import SEM
from sem_jax.modules.probe import Probe, unobserved


def matrix(rngs: nnx.Rngs, out_features: int, in_features: int) -> nnx.Param:
    """A real matrix [O, I] that keeps the mean power of its input."""
    return nnx.Param(jax.random.normal(rngs.params(), (out_features, in_features)) / in_features**0.5)


def depth_scale(config: ModelConfig) -> float:
    """Factor of what a block adds to the stream, so that the stream's power at the start does not grow with depth."""
    return (2 * config.num_layers) ** -0.5


def causal_taps(x: Array, taps: Array, kernel: Array, position: Array) -> tuple[Array, Array]:
    """A depthwise causal convolution that does not look past the start of a document.

    Args:
      x: [B, S, C].
      taps: [B, K−1, C], the inputs before x.
      kernel: [K, C], the present last.
      position: [B, S], of each token in its document.

    Returns:
      (y [B, S, C], the last K−1 inputs).
    """
    width, length = len(kernel), x.shape[1]
    extended = jnp.concatenate([taps, x], axis=1)
    y = jnp.zeros_like(x)
    for back in range(width):
        past = jax.lax.slice_in_dim(extended, width - 1 - back, width - 1 - back + length, axis=1)
        y += jnp.where(position[..., None] >= back, past * kernel[width - 1 - back], 0)
    return y, extended[:, length:]


class RealEncoder(Encoder):
    """The embedding alone: real, and without a position."""

    def __call__(
        self,
        tokens: Array,
        state: Array,
        context: Context,
        token_freqs: Array | None = None,
        probe: Probe = unobserved,
    ) -> tuple[Array, Array]:
        """See `Encoder`; the result is real."""
        del context, token_freqs
        return probe("wave", self.embedding[...][tokens]), state


class RealReadout(nnx.Module):
    """softmax(W·x + β), W small at the start as in the coherent readout."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        self.weight = matrix(rngs, config.vocab_size, config.hidden_dim)
        self.weight[...] = 0.1 * self.weight[...]
        self.bias = nnx.Param(jnp.zeros(config.vocab_size), decay=False)

    def log_probs(self, psi: Array) -> Array:
        """See `Readout`."""
        return jax.nn.log_softmax(self.logits(psi))

    def target_log_prob(self, psi: Array, targets: Array) -> tuple[Array, Array]:
        """See `Readout`."""
        logits = self.logits(psi)
        log_z = jax.nn.logsumexp(logits, axis=-1)
        return jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0] - log_z, log_z

    def logits(self, psi: Array) -> Array:
        """[..., D] to [..., V]."""
        return real_matmul(psi, self.weight[...]) + self.bias[...]


class RealModel(SEM):
    """A `SEM` whose stream is real: all that the trainer asks of a model, with real blocks between the ends."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        super().__init__(config, rngs)
        self.encoder = RealEncoder(config, rngs)
        self.readout = RealReadout(config, rngs)
