"""Depthwise causal convolution of complex channels, widely linear: a real 2x2 kernel on (re, im) per tap and channel.

The forward pass is a sum of shifted arrays. Its gradient with respect to the kernel sums over all tokens; written as
products with a row of ones these sums run at the speed of memory, while XLA's own reduction over the leading axes of a
CPU array takes several times as long.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array

from sem_jax.core.complex_ops import HIGHEST, stored


@jax.custom_vjp
def causal_conv(extended: Array, kernel: Array, bias: Array, position: Array) -> Array:
    """y_t = Σ_k kernel_k·x_{t−(K−1)+k} + bias on the parts of x; inputs from before a document's start do not count.

    Args:
      extended: [B, K−1+S, D], complex; the K−1 inputs before the first position, then the inputs.
      kernel: [K, D, 2, 2], real: tap (the last is the present), channel, part out, part in.
      bias: [D, 2], real.
      position: [B, S] int, of each output in its document.

    Returns:
      [B, S, D], complex. Differentiable in reverse mode in all but `position`.
    """

    def convolve(extended: Array, position: Array) -> Array:
        out = [bias[:, 0], bias[:, 1]]
        for tap, window in enumerate(_windows((extended.real, extended.imag), kernel.shape[0], position)):
            for row in (0, 1):
                out[row] = out[row] + kernel[tap, :, row, 0] * window[0] + kernel[tap, :, row, 1] * window[1]
        return jax.lax.complex(*out)

    return stored(convolve, extended, position)


def _windows(parts: tuple[Array, Array], width: int, position: Array) -> list[tuple[Array, Array]]:
    """What each tap sees of both parts, [..., S, D]; zero where it reaches into another document."""
    length = position.shape[-1]
    inside = [(position >= width - 1 - tap)[..., None] for tap in range(width)]

    def window(part: Array, tap: int) -> Array:
        return jnp.where(inside[tap], part[..., tap : tap + length, :], 0)

    return [(window(parts[0], tap), window(parts[1], tap)) for tap in range(width)]


def _forward(extended: Array, kernel: Array, bias: Array, position: Array):
    return causal_conv(extended, kernel, bias, position), (extended, kernel, position)


def _backward(residuals, y_bar: Array):
    extended, kernel, position = residuals
    width, length = kernel.shape[0], extended.shape[1]
    # JAX's cotangent of a complex output is not conjugated: those of its parts. Padded once, every tap reads a slice.
    ends = ((0, 0), (width - 1, width - 1), (0, 0))
    padded = jax.lax.optimization_barrier((jnp.pad(y_bar.real, ends), jnp.pad(-y_bar.imag, ends)))
    cotangents = [part[:, width - 1 : part.shape[1] - (width - 1)] for part in padded]
    padded_position = jnp.pad(position, ends[:2])
    x_bar = [jnp.zeros((), kernel.dtype)] * 2
    kernel_bar = []
    for tap, window in enumerate(_windows((extended.real, extended.imag), width, position)):
        start = width - 1 - tap
        counts = (padded_position[:, start : start + length] >= start)[..., None]
        pulled = [jnp.where(counts, part[:, start : start + length], 0) for part in padded]
        for column in (0, 1):
            x_bar[column] = x_bar[column] + kernel[tap, :, 0, column] * pulled[0]
            x_bar[column] = x_bar[column] + kernel[tap, :, 1, column] * pulled[1]
        kernel_bar.append([[_sum_of_tokens(part * seen) for seen in window] for part in cotangents])
    bias_bar = jnp.stack([_sum_of_tokens(part) for part in cotangents], axis=-1)
    extended_bar = jax.lax.complex(x_bar[0], -x_bar[1])
    return extended_bar, jnp.moveaxis(jnp.array(kernel_bar), -1, 1), bias_bar, None


causal_conv.defvjp(_forward, _backward)


def _sum_of_tokens(x: Array) -> Array:
    """Σ over batch and time of x [B, S, D]: [D]."""
    rows = x.reshape(-1, x.shape[-1])
    return jnp.matmul(jnp.ones((1, rows.shape[0]), x.dtype), rows, precision=HIGHEST)[0]
