"""What training minimises, as sums over target tokens, so that micro-batches add up exactly.

Default: L = −log P(y) + λ·log²Z with P the normalised Born rule. The first term is a likelihood in nats; the second
keeps the scale of the wave function, which P does not see, near Z = 1.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from sem_jax.modules.model import SEM, ForwardStats, ModelState


class LossSums(NamedTuple):
    """Weighted sums over the target tokens of a batch; divide by `weight` for means."""

    loss: Array  # what is minimised
    nll: Array  # −log P of the normalised distribution, nats
    weight: Array  # number of targets that count


def batch_loss(
    model: SEM, inputs: Array, targets: Array, resets: Array, weights: Array, unitary_lambda: float
) -> tuple[LossSums, ForwardStats, ModelState]:
    """Loss of one batch under the likelihood that the model's configuration names.

    Args:
      model: the model.
      inputs: [B, S] int, token ids.
      targets: [B, S] int, the tokens that follow.
      resets: [B, S] bool, True where an input starts a document.
      weights: [B, S], 0 for targets that do not count.
      unitary_lambda: λ of the log²Z term.
    """
    psi, state, stats = model(inputs, resets=resets)
    per_token = reference_loss if model.config.likelihood == "reference" else born_loss
    loss, nll = per_token(model, psi, targets, unitary_lambda)
    return LossSums(jnp.sum(weights * loss), jnp.sum(weights * nll), jnp.sum(weights)), stats, state


def born_loss(model: SEM, psi: Array, targets: Array, unitary_lambda: float) -> tuple[Array, Array]:
    """(−log P(y) + λ·log²Z, −log P(y)) of each token, [B, S]; no array over the vocabulary is formed."""
    log_prob, log_z = model.readout.target_log_prob(psi, targets)
    return unitary_lambda * jnp.square(log_z) - log_prob, -log_prob


def reference_loss(model: SEM, psi: Array, targets: Array, unitary_lambda: float) -> tuple[Array, Array]:
    """The PyTorch original's loss of each token (SPEC section 2, Reference loss), [B, S], and the normalised NLL.

    −log(a_y + 1e-12) + λ·log²(Σ_V a + 1e-12): not a likelihood, since scaling the readout alone lowers it. The second
    value is −log softmax(logits)_y, which is one.
    """
    logits, amplitude_sq = model.readout.reference_logits(psi)
    target = jnp.take_along_axis(amplitude_sq, targets[..., None], axis=-1)[..., 0]
    log_total = jnp.log(jnp.sum(amplitude_sq, axis=-1) + 1e-12)
    loss = unitary_lambda * jnp.square(log_total) - jnp.log(target + 1e-12)
    target_logit = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    return loss, jax.nn.logsumexp(logits, axis=-1) - target_logit
