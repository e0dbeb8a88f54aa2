"""The readout: from a wave to a distribution over the vocabulary."""

from __future__ import annotations

import jax.numpy as jnp
from flax import nnx
from jax import Array

from sem_jax.config import ModelConfig
from sem_jax.core import born, coherent
from sem_jax.modules.cost import COMPLEX, COMPLEX_MATMUL, COMPLEX_MULTIPLY_ADD, FLOAT, MULTIPLY_ADD, Cost, product
from sem_jax.modules.linear import complex_weight


class Readout(nnx.Module):
    """From ψ to a distribution over the vocabulary, under the likelihood that the configuration names.

    "coherent": P(v) ∝ e^{Re(W_v·ψ) + β_v} (docs/mathematics.md, section 9). "born": P(v) ∝ e^{β_v}|W_v·ψ|²
    (docs/mathematics.md, section 2, Readout, and section 3, rows 6 and 11). "reference": the original's logits and
    loss.
    """

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        self.likelihood = config.likelihood
        self.floor = config.born_floor
        self.weight = complex_weight(rngs, config.vocab_size, config.hidden_dim)
        if self.likelihood == "coherent":
            # Logits of order one would be noise that the first steps must unlearn.
            self.weight[...] = 0.1 * self.weight[...]
        self.bias = nnx.Param(jnp.zeros(config.vocab_size), decay=False)

    def log_probs(self, psi: Array) -> Array:
        """log P of every token: [..., D] to [..., V]."""
        if self.likelihood == "coherent":
            return coherent.log_probs(psi, self.weight[...], self.bias[...])[0]
        return born.log_probs(psi, self.weight[...], self.bias[...], self.floor)[0]

    def target_log_prob(self, psi: Array, targets: Array) -> tuple[Array, Array]:
        """(log P(target), log Z) of ψ [..., D] and targets [...], each [...]; no array over the vocabulary."""
        if self.likelihood == "coherent":
            return coherent.target_log_prob(psi, self.weight[...], self.bias[...], targets)
        return born.target_log_prob(psi, self.weight[...], self.bias[...], targets, self.floor)

    def reference_logits(self, psi: Array) -> tuple[Array, Array]:
        """The PyTorch original's logits and |W·ψ|², each [..., V]."""
        return born.reference_logits(psi, self.weight[...], self.bias[...])

    def costs(self, tokens: int) -> dict[str, Cost]:
        """Arithmetic and traffic of the loss: over the vocabulary for every token, or only for the Gram matrix."""
        vocab, dim = self.weight.shape
        wave, weights = COMPLEX * tokens * dim, COMPLEX * vocab * dim
        if self.likelihood == "reference":
            flops = COMPLEX_MATMUL * tokens * dim * vocab
            return {"readout/logits": product(flops, wave + weights, FLOAT * tokens * vocab)}
        if self.likelihood == "coherent":
            logits = MULTIPLY_ADD * tokens * 2 * dim * vocab
            # Backwards the logits once more, and the cotangents of both factors.
            return {"readout/logits": Cost(logits, 3 * logits, wave + weights, FLOAT * tokens)}
        # A Hermitian sum of outer products takes two of four real products: G, and backwards Σ z̄·conj(ψ)ψᵀ. The
        # cotangent of W takes three, and that of ψ reuses Gψ.
        square = MULTIPLY_ADD * dim * dim
        rows = COMPLEX_MULTIPLY_ADD * tokens * dim
        return {
            "readout/gram": Cost(2 * vocab * square, 3 * vocab * square, weights),
            "readout/likelihood": Cost(3 * tokens * square + rows, 2 * tokens * square + 2 * rows, 2 * wave),
        }
