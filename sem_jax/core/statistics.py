"""What describes a wave, or the gradient at it, in a few scalars; none of them overflows before the wave itself does.

Shapes: the last axis holds the channels of one token, every axis before it counts tokens.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from sem_jax.core.complex_ops import abs_sq


class Description(NamedTuple):
    """One array in scalars; NaN where a number is not defined."""

    bad: Array  #: int32, entries that are not finite
    first_bad: Array  #: int32 [axes of z], index of the first of them, all −1 where there is none
    rms: Array  #: root of the mean |z|²
    largest: Array  #: max |z|
    kurtosis: Array  #: see `excess_kurtosis`
    tail: Array  #: see `hill_index`
    entropy: Array  #: bits, see `channel_entropy`
    coherence: Array  #: 0 to 1, see `phase_coherence`


def describe(z: Array) -> Description:
    """All of the statistics of z [..., D], real or complex, as scalars."""
    bad = ~jnp.isfinite(z)
    first = jnp.stack(jnp.unravel_index(jnp.argmax(bad), z.shape))
    return Description(
        bad=jnp.sum(bad, dtype=jnp.int32),
        first_bad=jnp.where(jnp.any(bad), first, -1).astype(jnp.int32),
        rms=root_mean_square(z),
        largest=jnp.max(jnp.abs(z)),
        kurtosis=excess_kurtosis(z),
        tail=hill_index(z),
        entropy=channel_entropy(z),
        coherence=phase_coherence(z),
    )


def root_mean_square(z: Array) -> Array:
    """sqrt(mean |z|²), a scalar in the unit of z."""
    scaled, size = _scaled(z, None)
    return jnp.squeeze(size) * jnp.sqrt(jnp.mean(abs_sq(scaled)))


def excess_kurtosis(z: Array) -> Array:
    """E(x − μ)⁴/(E(x − μ)²)² − 3 over the real components, a scalar: 0 for Gaussian and for circular Gaussian entries.

    Real and imaginary parts are pooled (Pearson, 1905, without correction for the size of the sample). A constant has
    none: NaN.
    """
    x = _scaled(jnp.stack([z.real, z.imag]) if jnp.iscomplexobj(z) else z, None)[0]
    square = jnp.square(x - jnp.mean(x))
    return jnp.mean(jnp.square(square)) / jnp.square(jnp.mean(square)) - 3


def hill_index(z: Array) -> Array:
    """Tail index α of P(|z| > x) ~ x^(−α) from the largest entries, a scalar; moments of order α and above diverge.

    Hill (1975), "A simple general approach to inference about the tail of a distribution": with X_1 >= X_2 >= ... the
    ordered moduli, α = k/Σ_{i<=k} log(X_i/X_{k+1}), whose standard error is α/sqrt(k). k = floor(sqrt(n)) of n entries
    grows without bound while its share vanishes, which makes it consistent (Mason, 1982). NaN where X_{k+1} is 0 or
    there are fewer than two entries, infinite where the largest are equal.
    """
    k = math.isqrt(z.size)
    if k >= z.size:
        return jnp.full((), jnp.nan, z.real.dtype)
    top = jax.lax.top_k(jnp.abs(z).ravel(), k + 1)[0]
    # Rounded, a ratio of equal numbers may fall short of 1.
    return k / jnp.sum(jnp.maximum(jnp.log(top[:k] / top[k]), 0))


def channel_entropy(z: Array) -> Array:
    """Entropy in bits of a token's power over its channels, −Σ p·log₂p with p = |z|²/Σ|z|² (Shannon, 1948), a scalar.

    The mean over tokens: 0 where all power sits in one channel, log₂D where it is even. A zero token counts as 0; NaN
    where there is one channel only.
    """
    if z.shape[-1] == 1:
        return jnp.full((), jnp.nan, z.real.dtype)
    power = abs_sq(_scaled(z, -1)[0])
    total = jnp.sum(power, axis=-1, keepdims=True)
    return mean_entropy(power / jnp.where(total == 0, 1, total))


def mean_entropy(p: Array) -> Array:
    """−Σ p·log₂p of distributions p [..., M], the mean over all of them, in bits."""
    return -jnp.mean(jnp.sum(p * jnp.log2(jnp.where(p == 0, 1, p)), axis=-1))


def phase_coherence(z: Array) -> Array:
    """|Σ_d z_d|/Σ_d |z_d| of a token, the mean over tokens, a scalar from 0 to 1; a zero token counts as 0.

    The mean resultant length of circular statistics (Mardia and Jupp, 2000, section 2.3), weighted by the modulus: 1
    where all channels of a token are in phase, about sqrt(π/(4D)) where D equal channels have random phases. NaN for
    real z, which has no phase.
    """
    if not jnp.iscomplexobj(z):
        return jnp.full((), jnp.nan, z.dtype)
    z = _scaled(z, -1)[0]
    total = jnp.sum(jnp.abs(z), axis=-1)
    return jnp.mean(jnp.abs(jnp.sum(z, axis=-1)) / jnp.where(total == 0, 1, total))


def _scaled(z: Array, axis: int | None) -> tuple[Array, Array]:
    """(z divided by its largest modulus, which a square can neither overflow nor lose, that modulus)."""
    largest = jnp.max(jnp.abs(z), axis=axis, keepdims=True)
    return z / jnp.where(largest == 0, 1, largest), largest
