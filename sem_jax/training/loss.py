"""What training minimises, as sums over target tokens, so that micro-batches add up exactly.

Default: L = −log P(y) + λ·log²Z with P the normalised Born rule. The first term is a likelihood in nats; the second
keeps the scale of the wave function, which P does not see, near Z = 1.

Self-distillation adds the divergence from a teacher, a moving average of the model itself (Tarvainen and Valpola, 2017,
arXiv:1703.01780), both softened by a temperature (Hinton et al., 2015, arXiv:1503.02531):
(1−α)·L + α·T²·KL(teacher_T ‖ student_T).
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from sem_jax.core.devices import from_chunks, in_chunks, on_each_device
from sem_jax.modules.model import SEM, ForwardStats, ModelState
from sem_jax.modules.probe import Observer
from sem_jax.modules.readout import Readout

# The divergence visits the vocabulary in chunks of positions; an array of one chunk has at most so many entries
# on a device (64 MiB in float32): enough to keep an accelerator busy, and small beside the rest of a step.
CHUNK_ENTRIES = 2**24


class LossSums(NamedTuple):
    """Weighted sums over the target tokens of a batch; divide by `weight` for means."""

    loss: Array  # L, what is minimised where there is no teacher
    nll: Array  # −log P of the normalised distribution, nats
    weight: Array  # number of targets that count
    divergence: Array | None = None  # T²·KL(teacher_T ‖ student_T), nats; None without a teacher


def batch_loss(
    model: SEM,
    inputs: Array,
    targets: Array,
    resets: Array,
    weights: Array,
    unitary_lambda: float,
    teacher: SEM | None = None,
    temperature: float = 1.0,
    observer: Observer | None = None,
) -> tuple[LossSums, ForwardStats, ModelState]:
    """Loss of one batch under the likelihood that the model's configuration names.

    Args:
      model: the model.
      inputs: [B, S] int, token ids.
      targets: [B, S] int, the tokens that follow.
      resets: [B, S] bool, True where an input starts a document.
      weights: [B, S], 0 for targets that do not count.
      unitary_lambda: λ of the log²Z term.
      teacher: reads the same inputs and gets no gradient; None: no divergence is computed.
      temperature: T, softens the teacher and the model.
      observer: looks at the model's pass; None: an ordinary one.
    """
    psi, state, stats = model(inputs, resets=resets, observer=observer)
    loss, nll = token_losses(model, psi, targets, unitary_lambda)
    sums = LossSums(jnp.sum(weights * loss), jnp.sum(weights * nll), jnp.sum(weights))
    if teacher is not None:
        divergence = softened_divergence(model, psi, teacher, teacher(inputs, resets=resets)[0], temperature)
        sums = sums._replace(divergence=jnp.sum(weights * divergence))
    return sums, stats, state


def softened_divergence(
    model: SEM, psi: Array, teacher: SEM, teacher_psi: Array, temperature: float, chunk: int | None = None
) -> Array:
    """T²·KL(teacher_T ‖ student_T) of each position, in nats, where P_T ∝ P^{1/T} over the vocabulary.

    T² keeps the gradient's size independent of T (Hinton et al., 2015, section 2). P is the model's distribution: the
    Born rule, or the softmax of the logits under the reference likelihood. Neither the value nor its gradient forms an
    array over all positions and the vocabulary: chunks of positions follow one another, and the backward pass computes
    each of them again.

    Args:
      model: the student.
      psi: [B, S, D] complex, its wave function.
      teacher: gets no gradient.
      teacher_psi: [B, S, D] complex, its wave function.
      temperature: T, positive.
      chunk: positions of a device that are looked at together; None: as many as `CHUNK_ENTRIES` allows, half of them
        at most.

    Returns:
      [B, S], not negative up to rounding.
    """
    batch, length, dim = psi.shape
    graphdefs, weights = zip(*(nnx.split(each.readout) for each in (model, teacher)), strict=True)

    def of_rows(weights: tuple[Any, Any], waves: tuple[Array, Array]) -> Array:
        log_probs = [
            partial(_softened_log_probs, nnx.merge(graphdef, part), model.config.likelihood, temperature)
            for graphdef, part in zip(graphdefs, weights, strict=True)
        ]

        @jax.checkpoint
        def divergence(pair: tuple[Array, Array]) -> Array:
            student = log_probs[0](pair[0])
            target = jax.lax.stop_gradient(log_probs[1](pair[1]))
            return temperature**2 * jnp.sum(jnp.exp(target) * (target - student), axis=-1)

        tokens = len(waves[0])
        size = chunk or max(min(CHUNK_ENTRIES // model.config.vocab_size, -(-tokens // 2)), 1)
        # Whole chunks, the last filled up with its last position. Batched by `lax.map` itself, the gradient of the
        # readout would be formed for each position before it is summed.
        chunks = tuple(in_chunks(wave, size, filling="edge") for wave in waves)
        return from_chunks(jax.lax.map(divergence, chunks), tokens)

    waves = tuple(wave.reshape(-1, dim) for wave in (psi, teacher_psi))
    return on_each_device(of_rows)(weights, waves).reshape(batch, length)


def _softened_log_probs(readout: Readout, likelihood: str, temperature: float, psi: Array) -> Array:
    logits = readout.reference_logits(psi)[0] if likelihood == "reference" else readout.log_probs(psi)
    return jax.nn.log_softmax(logits / temperature)


def mean_divergence(total: Array, weight: Array, sequences: int, likelihood: str) -> Array:
    """The divergence that α weighs against the loss, from its sum over the target tokens of a batch.

    The loss is a mean over target tokens. The default's divergence is one too, so that α weighs like against like; the
    reference's, as recorded (docs/mathematics.md, section 6), is a sum over positions and a mean over sequences.

    Args:
      total: Σ of weight·divergence over the target tokens of all sequences.
      weight: number of targets that count.
      sequences: B.
      likelihood: as in `ModelConfig`.
    """
    return total / (sequences if likelihood == "reference" else weight)


def token_losses(model: SEM, psi: Array, targets: Array, unitary_lambda: float) -> tuple[Array, Array]:
    """(what is minimised without a teacher, −log P(y)) of each token, [B, S], under the configured likelihood."""
    per_token = reference_loss if model.config.likelihood == "reference" else born_loss
    return per_token(model, psi, targets, unitary_lambda)


def log_partition(model: SEM, psi: Array, targets: Array) -> Array:
    """log Z of each position, [B, S], the term that λ weighs, under the configured likelihood."""
    if model.config.likelihood == "reference":
        return _reference_log_partition(model.readout.reference_logits(psi)[1])
    return model.readout.target_log_prob(psi, targets)[1]


def _reference_log_partition(amplitude_sq: Array) -> Array:
    return jnp.log(jnp.sum(amplitude_sq, axis=-1) + 1e-12)


def born_loss(model: SEM, psi: Array, targets: Array, unitary_lambda: float) -> tuple[Array, Array]:
    """(−log P(y) + λ·log²Z, −log P(y)) of each token, [B, S]; no array over the vocabulary is formed."""
    log_prob, log_z = model.readout.target_log_prob(psi, targets)
    return unitary_lambda * jnp.square(log_z) - log_prob, -log_prob


def reference_loss(model: SEM, psi: Array, targets: Array, unitary_lambda: float) -> tuple[Array, Array]:
    """The PyTorch original's loss of each token (docs/mathematics.md, Reference loss), [B, S], and the normalised NLL.

    −log(a_y + 1e-12) + λ·log²(Σ_V a + 1e-12): not a likelihood, since scaling the readout alone lowers it. The second
    value is −log softmax(logits)_y, which is one.
    """
    logits, amplitude_sq = model.readout.reference_logits(psi)
    target = jnp.take_along_axis(amplitude_sq, targets[..., None], axis=-1)[..., 0]
    loss = unitary_lambda * jnp.square(_reference_log_partition(amplitude_sq)) - jnp.log(target + 1e-12)
    target_logit = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    return loss, jax.nn.logsumexp(logits, axis=-1) - target_logit
