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

from sem_jax.core.complex_ops import HIGHEST, abs_sq, complex_matmul, hermitian_parts

# Smallest Z that is divided by; only ψ = 0, which carries no distribution, falls below it. Its square is still a
# normal float32; quotients are written w·(1/z), whose gradient at w = 0 is 0 and not 0·inf.
TINY = 1e-18

# Rows of W that are worked on together: two parts of 256 channels and their sum are 3 MiB in float32.
CHUNK_ROWS = 1024


class Gram(NamedTuple):
    """G and the factor e^max(β) taken out of it against overflow."""

    matrix: Array  #: [D, D] complex Hermitian
    log_scale: Array  #: scalar, max β


def gram_matrix(weight: Array, bias: Array) -> Gram:
    """G = Wᴴ diag(e^β) W of W [V, D] complex and β [V] real, in O(V·D²)."""
    log_scale = jax.lax.stop_gradient(jnp.max(bias))

    def add(total: Array, rows: tuple[Array, Array]) -> tuple[Array, None]:
        part, part_bias = rows
        root = jnp.exp((part_bias - log_scale) / 2)[:, None]
        return total + _outer_sum(part.real * root, part.imag * root), None

    zero = jnp.zeros((weight.shape[1], weight.shape[1]), weight.dtype)
    return Gram(jax.lax.scan(add, zero, (_in_row_chunks(weight), _in_row_chunks(bias)))[0], log_scale)


def _in_row_chunks(x: Array) -> Array:
    """[V, ...] as [chunks, rows, ...], at most `CHUNK_ROWS` rows in each where V has a fitting divisor."""
    least = -(-x.shape[0] // CHUNK_ROWS)
    chunks = next((n for n in range(least, 2 * least + 1) if x.shape[0] % n == 0), 1)
    return x.reshape(chunks, -1, *x.shape[1:])


def _outer_sum(real: Array, imag: Array, share: Array | float = 1.0) -> Array:
    """Σ_n s_n·conj(x_n)·x_nᵀ of the rows x_n = real_n + i·imag_n and their share s [N, 1]: [D, D], Hermitian.

    With R and I the arrays of the parts, the sum is RᵀsR + IᵀsI, symmetric, and i times RᵀsI − IᵀsR, antisymmetric.
    Two real products give both at once: Rᵀs(R + I) + Iᵀs(I − R) is their sum, and its halves come apart by symmetry.
    """
    both = jnp.matmul(real.T, share * (real + imag), precision=HIGHEST)
    both += jnp.matmul(imag.T, share * (imag - real), precision=HIGHEST)
    return jax.lax.complex(*hermitian_parts(both))


def partition(psi: Array, gram: Gram) -> Array:
    """Z·exp(−gram.log_scale) of ψ [..., D]: [...], not negative up to rounding."""
    return _inner(psi, complex_matmul(psi, gram.matrix, HIGHEST))


def _inner(u: Array, v: Array) -> Array:
    """Re ⟨u, v⟩ over the last axis."""
    return jnp.sum(u.real * v.real + u.imag * v.imag, axis=-1)


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
    log_scale = jax.lax.stop_gradient(jnp.max(bias))
    target_weight, total = _target_and_total(psi, weight, bias - log_scale, targets)
    # Z is at least the target's own weight; rounding in the quadratic form must not push P above 1.
    z = jnp.maximum(total, jnp.maximum(target_weight, TINY))
    return log_mixed(target_weight * (1 / z), weight.shape[0], floor), jnp.log(z) + log_scale


@jax.custom_vjp
def _target_and_total(psi: Array, weight: Array, bias: Array, targets: Array) -> tuple[Array, Array]:
    """(e^{β_y}|W_y·ψ|², Σ_v e^{β_v}|W_v·ψ|²) of each ψ [..., D] and target y [...], with its gradient in closed form.

    With t̄, z̄ the cotangents of the two and a = W_y·ψ, in JAX's unconjugated convention,

        ψ̄ = 2z̄·conj(Gψ) + 2t̄e^{β_y}·conj(a)·W_y,    W̄ = 2diag(e^β)·conj(W)·N + rows,    N = Σ_tokens z̄·conj(ψ)ψᵀ,

    rows adding 2t̄e^{β_y}·conj(a)·ψ to row y of each token, and β̄_v = Re(W̄_v·W_v)/2. Differentiating G itself would cost
    twice the products over the vocabulary. Chunks of rows keep the real and imaginary parts of W in the cache.
    """
    return _target_and_total_forward(psi, weight, bias, targets)[0]


def _target_and_total_forward(psi: Array, weight: Array, bias: Array, targets: Array):
    g_psi = complex_matmul(psi, gram_matrix(weight, bias).matrix, HIGHEST)
    amplitude = jnp.sum(weight[targets] * psi, axis=-1)
    target_weight = abs_sq(amplitude) * jnp.exp(bias[targets])
    return (target_weight, _inner(psi, g_psi)), (psi, weight, bias, targets, g_psi, amplitude)


def _target_and_total_backward(residuals, cotangents):
    psi, weight, bias, targets, g_psi, amplitude = residuals
    target_bar, total_bar = cotangents
    pull = (2 * target_bar * jnp.exp(bias[targets]) * jnp.conj(amplitude))[..., None]
    psi_bar = 2 * total_bar[..., None] * jnp.conj(g_psi) + pull * weight[targets]

    waves = psi.reshape(-1, psi.shape[-1])
    outer = _outer_sum(waves.real, waves.imag, total_bar.reshape(-1, 1))

    def of_rows(rows: tuple[Array, Array]) -> tuple[Array, Array]:
        part, part_bias = rows
        bar = 2 * jnp.exp(part_bias)[:, None] * complex_matmul(part.conj(), outer.T, HIGHEST)
        return bar, jnp.sum(bar.real * part.real - bar.imag * part.imag, axis=-1) / 2

    weight_bar, bias_bar = jax.lax.map(of_rows, (_in_row_chunks(weight), _in_row_chunks(bias)))
    weight_bar = weight_bar.reshape(weight.shape).at[targets].add(pull * psi)
    bias_bar = bias_bar.reshape(bias.shape).at[targets].add(target_bar * abs_sq(amplitude) * jnp.exp(bias[targets]))
    return psi_bar, weight_bar, bias_bar, None


_target_and_total.defvjp(_target_and_total_forward, _target_and_total_backward)


def log_probs(psi: Array, weight: Array, bias: Array, floor: float) -> tuple[Array, Array]:
    """log P of every token: ([..., V], log Z [...]), for generation and inspection."""
    amplitude_sq = abs_sq(complex_matmul(psi, weight, HIGHEST))
    log_scale = jax.lax.stop_gradient(jnp.max(bias))
    weights = amplitude_sq * jnp.exp(bias - log_scale)
    z = jnp.maximum(jnp.sum(weights, axis=-1, keepdims=True), TINY)
    return log_mixed(weights * (1 / z), weight.shape[0], floor), jnp.log(z[..., 0]) + log_scale


def log_mixed(share: Array, vocab_size: int, floor: float) -> Array:
    """log P of a distribution that is mixed with a share η = `floor` of the uniform one over the vocabulary."""
    return jnp.log((share + floor / vocab_size) / (1 + floor))


def reference_logits(psi: Array, weight: Array, bias: Array) -> tuple[Array, Array]:
    """The PyTorch original's logits log(a + 1e-6·mean_V(a) + 1e-30) + β and a = |W·ψ|², each [..., V]."""
    amplitude_sq = abs_sq(complex_matmul(psi, weight, HIGHEST))
    floor = 1e-6 * jnp.mean(amplitude_sq, axis=-1, keepdims=True) + 1e-30
    return jnp.log(amplitude_sq + floor) + bias, amplitude_sq
