"""Parameters shared by several modules: real affine maps and initial values."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from sem_jax.core.complex_ops import complex_normal, real_matmul


class Linear(nnx.Module):
    """Real affine map y = W·x + b, W [O, I]; initial values uniform within ±1/sqrt(I)."""

    def __init__(self, in_features: int, out_features: int, *, bias_init: float = 0.0, rngs: nnx.Rngs):
        bound = in_features**-0.5
        shape = (out_features, in_features)
        self.weight = nnx.Param(jax.random.uniform(rngs.params(), shape, minval=-bound, maxval=bound))
        self.bias = nnx.Param(jnp.full((out_features,), bias_init), decay=False)

    def __call__(self, x: Array) -> Array:
        """[..., I] to [..., O]."""
        return real_matmul(x, self.weight[...]) + self.bias[...]

    def of_parts(self, z: Array) -> Array:
        """W·[Re z; Im z] + b of a complex z [..., I/2], without forming the stacked array: [..., O] real."""
        weight = self.weight[...]
        half = weight.shape[1] // 2
        return real_matmul(z.real, weight[:, :half]) + real_matmul(z.imag, weight[:, half:]) + self.bias[...]


def complex_weight(rngs: nnx.Rngs, out_features: int, in_features: int) -> nnx.Param:
    """Complex matrix [O, I] that keeps the mean power of its input: E|w|² = 1/I."""
    return nnx.Param(complex_normal(rngs.params(), (out_features, in_features), 1 / in_features))
