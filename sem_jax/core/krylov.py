"""Conjugate gradients for many right-hand sides at once, each with its own coefficients and its own stop."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from sem_jax.core.complex_ops import abs_sq


class SolveInfo(NamedTuple):
    """What a linear solve reports."""

    iterations: Array  #: scalar int32, the most that any right-hand side took
    residual: Array  #: [...], relative residual of each right-hand side


def conjugate_gradient(
    matvec: Callable[[Array], Array], rhs: Array, max_iter: int, tol: float
) -> tuple[Array, SolveInfo]:
    """Solves A·x = rhs for a Hermitian positive definite A.

    Hestenes and Stiefel (1952); Saad (2003), "Iterative Methods for Sparse Linear Systems", algorithm 6.18. Differs
    from `jax.scipy.sparse.linalg.cg` in that every right-hand side has its own step lengths and freezes when its own
    residual falls below tol·‖rhs‖: the answer for one token does not depend on which tokens share its batch. Not
    differentiable in reverse mode (`lax.while_loop`); `sem_jax.core.cayley` supplies the implicit gradient. Memory does
    not grow with the number of iterations.

    Args:
      matvec: v ↦ A·v over the last axis.
      rhs: [..., D], real or complex.
      max_iter: iterations at most.
      tol: relative residual at which a right-hand side is done.

    Returns:
      (x, info): x [..., D]; info.residual [...] is that of the recurrence. A zero rhs gives x = 0 at once.
    """
    # Of entries near 1, the squares below neither underflow, which would look like an answer found, nor overflow.
    largest = jnp.max(jnp.maximum(jnp.abs(rhs.real), jnp.abs(rhs.imag)), axis=-1, keepdims=True)
    size = jnp.where(largest >= jnp.finfo(largest.dtype).tiny, largest, 1)
    rhs = rhs * (1 / size)
    rhs_sq = _dot(rhs)
    threshold = tol**2 * rhs_sq

    def unfinished(carry) -> Array:
        _, _, _, rho, iteration = carry
        return (iteration < max_iter) & jnp.any(rho > threshold)

    def step(carry):
        x, r, p, rho, iteration = carry
        active = rho > threshold
        a_p = matvec(p)
        curvature = jnp.sum(p.real * a_p.real + p.imag * a_p.imag, axis=-1, keepdims=True)
        alpha = jnp.where(active, rho / jnp.where(active, curvature, 1), 0)
        x, r = x + alpha * p, r - alpha * a_p
        rho_next = jnp.where(active, _dot(r), rho)
        beta = rho_next / jnp.where(active, rho, 1)
        return x, r, jnp.where(active, r + beta * p, p), rho_next, iteration + 1

    start = (jnp.zeros_like(rhs), rhs, rhs, rhs_sq, jnp.int32(0))
    x, _, _, rho, iterations = jax.lax.while_loop(unfinished, step, start)
    residual = jnp.sqrt(rho / jnp.where(rhs_sq > 0, rhs_sq, 1))[..., 0]
    return x * size, SolveInfo(iterations, residual)


def _dot(r: Array) -> Array:
    return jnp.sum(abs_sq(r), axis=-1, keepdims=True)
