"""The Born rule: a wave function over the vocabulary, and its exact likelihood in O(D²) a token.

With amplitudes W·ψ and a bias β the weight of token v is e^{β_v}|W_v·ψ|², and

    Z = Σ_v e^{β_v}|W_v·ψ|² = ψᴴ G ψ,    G = Wᴴ diag(e^β) W   [D, D], Hermitian,

so the likelihood of one target needs one row of W and one quadratic form: the vocabulary enters only through G, once a
step. The distribution is mixed with a share η of the uniform one,

    P(v) = (e^{β_v}|W_v·ψ|²/Z + η/V) / (1 + η),

which keeps −log P and its gradient finite where an amplitude vanishes and is still exactly normalised.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from sem_jax.core.complex_ops import abs_sq, complex_matmul
from sem_jax.core.graph import HIGHEST

# Smallest Z that is divided by; only ψ = 0, which carries no distribution, falls below it. Its square is still a
# normal float32; quotients are written w·(1/z), whose gradient at w = 0 is 0 and not 0·inf.
TINY = 1e-18


class Gram(NamedTuple):
    """G and the factor e^max(β) taken out of it against overflow."""

    matrix: Array  # [D, D] complex Hermitian
    log_scale: Array  # scalar, max β


def gram_matrix(weight: Array, bias: Array) -> Gram:
    """G = Wᴴ diag(e^β) W of W [V, D] complex and β [V] real, in O(V·D²)."""
    log_scale = jax.lax.stop_gradient(jnp.max(bias))
    scaled = weight * jnp.exp((bias - log_scale) / 2)[:, None]
    real, imag = scaled.real, scaled.imag
    stacked = jnp.concatenate([real, imag], axis=-1)
    products = jnp.matmul(stacked.T, stacked, precision=HIGHEST)
    dim = real.shape[-1]
    re_re, re_im, im_im = products[:dim, :dim], products[:dim, dim:], products[dim:, dim:]
    return Gram(jax.lax.complex(re_re + im_im, re_im - re_im.T), log_scale)


def partition(psi: Array, gram: Gram) -> Array:
    """Z·exp(−gram.log_scale) of ψ [..., D]: [...], not negative up to rounding."""
    g_psi = complex_matmul(psi, gram.matrix, HIGHEST)
    return jnp.sum(psi.real * g_psi.real + psi.imag * g_psi.imag, axis=-1)


def target_log_prob(psi: Array, weight: Array, bias: Array, targets: Array, floor: float) -> tuple[Array, Array]:
    """log P(target) without any array over the vocabulary.

    Args:
      psi: [..., D], complex.
      weight: [V, D], complex.
      bias: [V], real.
      targets: [...] int, in 0..V−1.
      floor: η, share of the uniform distribution.

    Returns:
      (log P(target), log Z), each [...].
    """
    gram = gram_matrix(weight, bias)
    rows = weight[targets]
    real = jnp.sum(rows.real * psi.real - rows.imag * psi.imag, axis=-1)
    imag = jnp.sum(rows.real * psi.imag + rows.imag * psi.real, axis=-1)
    target_weight = (jnp.square(real) + jnp.square(imag)) * jnp.exp(bias[targets] - gram.log_scale)
    # Z is at least the target's own weight; rounding in the quadratic form must not push P above 1.
    z = jnp.maximum(partition(psi, gram), jnp.maximum(target_weight, TINY))
    return _mix(target_weight * (1 / z), weight.shape[0], floor), jnp.log(z) + gram.log_scale


def log_probs(psi: Array, weight: Array, bias: Array, floor: float) -> tuple[Array, Array]:
    """log P of every token: ([..., V], log Z [...]), for generation and inspection."""
    amplitude_sq = abs_sq(complex_matmul(psi, weight, HIGHEST))
    log_scale = jax.lax.stop_gradient(jnp.max(bias))
    weights = amplitude_sq * jnp.exp(bias - log_scale)
    z = jnp.maximum(jnp.sum(weights, axis=-1, keepdims=True), TINY)
    return _mix(weights * (1 / z), weight.shape[0], floor), jnp.log(z[..., 0]) + log_scale


def _mix(share: Array, vocab_size: int, floor: float) -> Array:
    return jnp.log((share + floor / vocab_size) / (1 + floor))


def reference_logits(psi: Array, weight: Array, bias: Array) -> tuple[Array, Array]:
    """The PyTorch original's logits log(a + 1e-6·mean_V(a) + 1e-30) + β and a = |W·ψ|², each [..., V]."""
    amplitude_sq = abs_sq(complex_matmul(psi, weight, HIGHEST))
    floor = 1e-6 * jnp.mean(amplitude_sq, axis=-1, keepdims=True) + 1e-30
    return jnp.log(amplitude_sq + floor) + bias, amplitude_sq
