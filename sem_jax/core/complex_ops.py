"""Complex arithmetic that XLA runs well, and the one convention about gradients.

Conjugation convention. For a real loss L and complex z = x + iy, `jax.grad` returns ∂L/∂x − i ∂L/∂y, the conjugate of
the direction of steepest ascent. Everything here and in the custom gradients of this package works with JAX's own
(transposed, never conjugated) cotangents; the optimizer conjugates once, first in its chain (`sem_jax.optim`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from sem_jax.core.devices import num_devices

HIGHEST = jax.lax.Precision.HIGHEST


def abs_sq(z: Array) -> Array:
    """|z|² as a real array, without the square root (and the NaN gradient at 0) of `jnp.abs`."""
    return jnp.square(z.real) + jnp.square(z.imag) if jnp.iscomplexobj(z) else jnp.square(z)


def expi(phase: Array) -> Array:
    """exp(i·phase) of a real array, exactly unimodular up to rounding."""
    return jax.lax.complex(*cos_sin(phase))


def stored(function: Callable[..., Any], *args: Any) -> Any:
    """`function(*args)`, computed once and kept in memory; all arrays have a common leading axis.

    XLA:CPU fuses arithmetic into every function that reads its result, so that a cosine with four readers is computed
    four times, and `optimization_barrier` is gone before it fuses. It does not fuse across a loop: there, this is one
    over the leading axis. Where a mesh spreads that axis over several devices, a loop would gather it, and elsewhere
    than on a CPU a value is stored or not as the compiler thinks best.
    """

    def loop(*args: Any) -> Any:
        return jax.lax.map(lambda rows: function(*rows), args)

    if num_devices() > 1:
        return function(*args)
    return jax.lax.platform_dependent(*args, cpu=loop, default=function)


@jax.custom_jvp
def cos_sin(phase: Array) -> tuple[Array, Array]:
    """(cos, sin) of a real array, to a rounding in float32 while |phase| < 8,000.

    XLA:CPU calls a scalar library routine for each of the two; this takes a tenth of their time. The phase is reduced
    to within π/4 of a multiple n of π/2, in three steps so that n·π/2 is exact (Cody and Waite, 1980), and both are
    polynomials there (Moshier's Cephes library, sinf.c). A phase so large that its rounding exceeds the interval has
    no digit left that tells its angle; its cosine and sine are still those of some angle. Double precision uses the
    library.
    """
    if phase.dtype != jnp.float32:
        return jnp.cos(phase), jnp.sin(phase)
    quarters = jnp.round(phase * (2 / jnp.pi))
    angle = ((phase - quarters * 1.5703125) - quarters * 4.837512969970703125e-4) - quarters * 7.54978995489188e-8
    angle = jnp.clip(angle, -0.8, 0.8)
    square = angle * angle
    sin = angle + angle * square * (-1.6666654611e-1 + square * (8.3321608736e-3 - 1.9515295891e-4 * square))
    cos = 4.166664568298827e-2 + square * (-1.388731625493765e-3 + 2.443315711809948e-5 * square)
    cos = 1 - square / 2 + square * square * cos
    quadrant = jnp.mod(quarters, 4)
    swapped = jnp.mod(quadrant, 2) == 1
    return (
        jnp.where(swapped, sin, cos) * jnp.where((quadrant == 1) | (quadrant == 2), -1, 1),
        jnp.where(swapped, cos, sin) * jnp.where(quadrant >= 2, -1, 1),
    )


@cos_sin.defjvp
def _cos_sin_jvp(primals: tuple[Array], tangents: tuple[Array]):
    (phase,), (d_phase,) = primals, tangents
    cos, sin = cos_sin(phase)
    return (cos, sin), (-sin * d_phase, cos * d_phase)


@jax.custom_jvp
def one_minus_exp_neg(x: Array) -> Array:
    """1 − exp(−x) = tanh(x/2)·(1 + exp(−x)), accurate to rounding at small x >= 0.

    `jnp.expm1` is as accurate, but XLA:CPU calls a scalar library routine for it and vectorises tanh and exp.
    """
    return jnp.tanh(x / 2) * (1 + jnp.exp(-x))


@one_minus_exp_neg.defjvp
def _one_minus_exp_neg_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    # The derivative of the product above would be a difference of numbers near 1: at x = 12 two digits would be left.
    (x,), (dx,) = primals, tangents
    return one_minus_exp_neg(x), jnp.exp(-x) * dx


def complex_matmul(x: Array, weight: Array, precision: jax.lax.PrecisionLike = None) -> Array:
    """x·weightᵀ by three real matrix products.

    Native complex64 products are 2-4 times slower on CPU and can use neither bf16 nor tensor cores.

    Args:
      x: [..., I], complex.
      weight: [O, I], complex or real.
      precision: of the real products, as in `jnp.matmul`.

    Returns:
      [..., O], complex.
    """
    if jnp.iscomplexobj(weight):
        return _complex_product(x, weight, precision)
    return jax.lax.complex(real_matmul(x.real, weight, precision), real_matmul(x.imag, weight, precision))


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _complex_product(x: Array, weight: Array, precision: jax.lax.PrecisionLike) -> Array:
    """x·weightᵀ; with the cotangent ȳ, x̄ = ȳ·weight and weight̄ = ȳᵀ·x, by three real products each."""
    return jax.lax.complex(*product_of_parts(_parts(x), _parts(weight), lambda a, b: real_matmul(a, b, precision)))


def _complex_product_forward(x: Array, weight: Array, precision: jax.lax.PrecisionLike):
    return _complex_product(x, weight, precision), (x, weight)


def _complex_product_backward(precision: jax.lax.PrecisionLike, residuals, y_bar: Array):
    x, weight = residuals
    # Behind the barrier the parts exist as arrays. Fused into the transposed copies that the products read, they would
    # be computed again for each product.
    y_parts, x_parts = jax.lax.optimization_barrier(tuple(map(_parts, (y_bar, x))))
    x_bar = product_of_parts(y_parts, _parts(weight), lambda a, b: jnp.matmul(a, b, precision=precision))
    weight_bar = product_of_parts(y_parts, x_parts, lambda a, b: sum_of_products(a, b, precision))
    return jax.lax.complex(*x_bar), jax.lax.complex(*weight_bar)


_complex_product.defvjp(_complex_product_forward, _complex_product_backward)


def _parts(z: Array) -> tuple[Array, Array]:
    return z.real, z.imag


def product_of_parts(
    a: Sequence[Array], b: Sequence[Array], product: Callable[[Array, Array], Array]
) -> tuple[Array, Array]:
    """The parts of a bilinear product a·b of complex arrays, by three real products in the place of four (Gauss).

    With s = (Re a + Im a)·Re b it is s − Im a·(Re b + Im b) and s + Re a·(Im b − Re b). Each part errs by the rounding
    of both: by a few eps·‖a‖·‖b‖, as the larger one does with four products (Higham, 1992, Stability of a method for
    multiplying complex matrices with three real matrix multiplications).

    Args:
      a, b: (real part, imaginary part) of each factor.
      product: of real arrays.

    Returns:
      (real part, imaginary part).
    """
    shared = product(a[0] + a[1], b[0])
    return shared - product(a[1], b[0] + b[1]), shared + product(a[0], b[1] - b[0])


def hermitian_parts(both: Array) -> tuple[Array, Array]:
    """The parts of a Hermitian S + iK [..., D, D] from S + K: S is symmetric, K antisymmetric."""
    return (both + both.mT) / 2, (both - both.mT) / 2


def real_matmul(x: Array, weight: Array, precision: jax.lax.PrecisionLike = None) -> Array:
    """x·weightᵀ for real x [..., I] and weight [O, I]: [..., O]."""
    return jnp.einsum("...i,oi->...o", x, weight, precision=precision)


def sum_of_products(a: Array, b: Array, precision: jax.lax.PrecisionLike = None) -> Array:
    """Σ aᵀb over all leading axes of a [..., I] and b [..., J], which are alike: [I, J]."""
    if num_devices() > 1:
        # Merged behind a time axis, rows that are spread over devices would have to be gathered.
        leading = tuple(range(a.ndim - 1))
        return jnp.tensordot(a, b, (leading, leading), precision=precision)
    # XLA:CPU takes a quarter less time for a plain product.
    return jnp.matmul(a.reshape(-1, a.shape[-1]).T, b.reshape(-1, b.shape[-1]), precision=precision)


def rms_norm(z: Array, gamma: Array) -> Array:
    """Phase-preserving RMS normalisation over the last axis (docs/mathematics.md, section 2, Norm).

    z·γ / (sqrt(Σ|z|² / n) + 1e-8), n the number of entries with |z|² > 1e-12. A zero vector stays zero and gets a zero
    gradient: the derivative of the square root at 0 is never formed.

    Args:
      z: [..., D], complex.
      gamma: [D], real.
    """
    power = abs_sq(z)
    active = jnp.maximum(jnp.sum(power > 1e-12, axis=-1, keepdims=True), 1).astype(power.dtype)
    total = jnp.sum(power, axis=-1, keepdims=True)
    is_zero = total == 0
    rms = jnp.where(is_zero, 0.0, jnp.sqrt(jnp.where(is_zero, 1.0, total) / active))
    return z * (gamma / (rms + 1e-8))


def complex_normal(key: Array, shape: tuple[int, ...], variance: float) -> Array:
    """Circular complex Gaussian, E|z|² = variance, complex64 (complex128 under x64)."""
    dtype = jax.dtypes.canonicalize_dtype(jnp.complex128)
    return jnp.sqrt(variance).astype(dtype) * jax.random.normal(key, shape, dtype)
