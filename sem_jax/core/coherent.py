"""The Born rule on coherent states: a distribution over the vocabulary that is log-linear in the wave.

Let ψ and the rows w_v of W label coherent (Glauber, 1963) states of D modes. Two such states overlap with probability
|⟨w|ψ⟩|² = exp(−‖w − ψ‖²), so with a bias β the Born rule in Fock space is

    P(v) = e^{β_v}|⟨w_v|ψ⟩|² / Z = softmax_v(2·Re⟨w_v, ψ⟩ − ‖w_v‖² + β_v).

The rule on a D-dimensional space (`sem_jax.core.born`) cannot be sharp for more than D tokens, as Σ_v max_ψ P(v) = D;
Fock space is infinite-dimensional and has no such bound. Here ‖w_v‖² is part of β_v, and W holds 2·conj(w_v), so that

    log P(v) = ℓ_v − log Z,   ℓ_v = Re(W_v·ψ) + β_v,   Z = Σ_v e^{ℓ_v}.

Chunks of tokens follow one another, and the backward pass computes the logits of a chunk again: no array over all
tokens and the vocabulary exists. With p = softmax(ℓ) and cotangents ḡ of ℓ_y and z̄ of log Z,

    ℓ̄ = z̄·p + ḡ·e_y,    ψ̄ = ℓ̄·W,    W̄ = ℓ̄ᵀ·ψ,    β̄ = Σ ℓ̄   (JAX's unconjugated convention, summed over tokens).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array

from sem_jax.core.complex_ops import HIGHEST
from sem_jax.core.devices import from_chunks, in_chunks, on_each_device

# Entries of the logits that a device holds at a time: 16 MiB in float32, which a CPU's cache holds in part and which
# keeps an accelerator busy.
CHUNK_ENTRIES = 2**22


def log_probs(psi: Array, weight: Array, bias: Array) -> tuple[Array, Array]:
    """log P of every token: ([..., V], log Z [...]), for generation and inspection."""
    values = _logits(_parts(psi), _parts(weight.conj()), bias)
    log_z = jax.nn.logsumexp(values, axis=-1)
    return values - log_z[..., None], log_z


def target_log_prob(psi: Array, weight: Array, bias: Array, targets: Array) -> tuple[Array, Array]:
    """log P(target) without an array over all tokens and the vocabulary.

    Args:
      psi: [..., D], complex.
      weight: [V, D], complex.
      bias: [V], real.
      targets: [...] int, in 0..V−1.

    Returns:
      (log P(target), log Z), each [...].
    """

    def of_rows(weights: tuple[Array, Array], rows: tuple[Array, Array]) -> tuple[Array, Array]:
        return _target_and_log_z(rows[0], *weights, rows[1])

    rows = _parts(psi).reshape(-1, 2 * psi.shape[-1]), targets.ravel()
    target, log_z = on_each_device(of_rows)((_parts(weight.conj()), bias), rows)
    return (target - log_z).reshape(targets.shape), log_z.reshape(targets.shape)


def _parts(z: Array) -> Array:
    """[Re z, Im z] along the last axis."""
    return jnp.concatenate([z.real, z.imag], axis=-1)


def _logits(psi: Array, weight: Array, bias: Array) -> Array:
    """ℓ = W·ψ + β of real ψ [..., 2D], W [V, 2D] and β [V]: [..., V]."""
    return jnp.matmul(psi, weight.T, precision=HIGHEST) + bias


def _in_chunks(x: Array, vocab_size: int) -> Array:
    """[T, ...] as [chunks, tokens, ...]; the last chunk is filled up with zeros."""
    return in_chunks(x, max(min(CHUNK_ENTRIES // vocab_size, len(x)), 1))


@jax.custom_vjp
def _target_and_log_z(psi: Array, weight: Array, bias: Array, targets: Array) -> tuple[Array, Array]:
    """(ℓ_y, log Z) of real ψ [T, 2D], W [V, 2D], β [V] and targets [T]: each [T]."""

    def of_chunk(inputs: tuple[Array, Array]) -> tuple[Array, Array]:
        part, y = inputs
        values = _logits(part, weight, bias)
        return jnp.take_along_axis(values, y[:, None], axis=-1)[:, 0], jax.nn.logsumexp(values, axis=-1)

    chunks = _in_chunks(psi, len(bias)), _in_chunks(targets, len(bias))
    target, log_z = jax.lax.map(of_chunk, chunks)
    return from_chunks(target, len(psi)), from_chunks(log_z, len(psi))


def _forward(psi: Array, weight: Array, bias: Array, targets: Array):
    target, log_z = _target_and_log_z(psi, weight, bias, targets)
    return (target, log_z), (psi, weight, bias, targets, log_z)


def _backward(residuals, cotangents):
    psi, weight, bias, targets, log_z = residuals
    vocab_size = len(bias)

    def of_chunk(carry: tuple[Array, Array], inputs: tuple[Array, ...]) -> tuple[tuple[Array, Array], Array]:
        weight_bar, bias_bar = carry
        part, y, log_z_part, target_bar, log_z_bar = inputs
        values = _logits(part, weight, bias)
        bar = log_z_bar[:, None] * jnp.exp(values - log_z_part[:, None])
        bar += jnp.where(jnp.arange(vocab_size) == y[:, None], target_bar[:, None], 0)
        weight_bar += jnp.matmul(bar.T, part, precision=HIGHEST)
        return (weight_bar, bias_bar + jnp.sum(bar, axis=0)), jnp.matmul(bar, weight, precision=HIGHEST)

    chunks = tuple(_in_chunks(x, vocab_size) for x in (psi, targets, log_z, *cotangents))
    zero = jnp.zeros_like(weight), jnp.zeros_like(bias)
    (weight_bar, bias_bar), psi_bar = jax.lax.scan(of_chunk, zero, chunks)
    return from_chunks(psi_bar, len(psi)), weight_bar, bias_bar, None


_target_and_log_z.defvjp(_forward, _backward)
