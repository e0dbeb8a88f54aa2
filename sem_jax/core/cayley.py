"""The unitary step x = U·ψ, U = (I + ihH)⁻¹(I − ihH): Crank and Nicolson (1947) for iψ' = Hψ, with h = dt/2.

H is real, symmetric and positive semi-definite, so U is unitary (‖x‖ = ‖ψ‖) and complex symmetric (U = Uᵀ).

Why not plain conjugate gradients on (I + ihH)x = (I − ihH)ψ? That matrix is not Hermitian. CG divides by the curvature
⟨p, (I + ihH)p⟩, whose real part is ‖p‖²: the step lengths know nothing of H. Although the condition number is close to
1, the residual never falls, and more iterations make it worse (`cg_on_cayley` shows it). Started at the answer to the
previous batch, as the PyTorch original does, it multiplies the error of that answer, until training overflows
(docs/stability.md). Multiplying by (I − ihH) gives the normal equations

    (I + h²H²) z = (I − ihH) ψ,    x = 2z − ψ,

whose matrix is real, symmetric and positive definite with condition number 1 + (hλ_max)². In general normal equations
square the condition number; here they turn sqrt(1 + (hλ)²) into 1 + (hλ)², harmless while hλ is of order one.

Gradient (implicit function theorem). From (I + ihH)x = (I − ihH)ψ,

    dx = U·dψ − i (I + ihH)⁻¹ d(hH) (x + ψ),    (I + ihH)⁻¹ = (I + U)/2.

Both matrices equal their transpose, so with the cotangent x̄ (JAX's, not conjugated) and y = U·x̄, μ = (x̄ + y)/2:

    ψ̄ = y,    (H̄, h̄) = pullback of (H, h) ↦ −ih·H(x + ψ) at μ.

One further unitary step with the same solver and tolerance; nothing is stored for the iterations. The rule needs only
that U is applied accurately, so every solver shares it, and as both its steps are unitary steps again it can be
differentiated in turn.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from sem_jax.core.complex_ops import HIGHEST, abs_sq, complex_matmul
from sem_jax.core.graph import DenseHamiltonian, Hamiltonian, matvec, spectral_bound, to_dense
from sem_jax.core.krylov import SolveInfo, conjugate_gradient

SOLVERS = ("cg", "dense", "chebyshev", "cg_on_cayley")


class SolverOptions(NamedTuple):
    """How to apply U; hashable, so that it is static under `jax.jit`."""

    solver: str = "cg"
    max_iter: int = 8  #: of cg and cg_on_cayley
    tol: float = 1e-7  #: relative residual at which cg and chebyshev stop
    degree: int = 64  #: of chebyshev, at most; enough for single precision while hλ <= 10


DEFAULT_OPTIONS = SolverOptions()


class PreparedStep(NamedTuple):
    """What a step needs besides ψ; for many steps under one Hamiltonian it is computed once."""

    hamiltonian: Hamiltonian
    solution: Array | None  #: U of the dense solver, the spectral bound of Chebyshev's


def prepare_step(
    hamiltonian: Hamiltonian, dim: int, h: float | Array, options: SolverOptions = DEFAULT_OPTIONS
) -> PreparedStep:
    """Builds the matrix that a solver needs and does the work that does not depend on ψ.

    Args:
      hamiltonian: edge list or matrix; "dense" builds the matrix from an edge list.
      dim: D.
      h: half the time step.
      options: the solver and its limits, those of the step.

    Raises:
      ValueError: unknown solver.
    """
    if options.solver not in SOLVERS:
        raise ValueError(f"solver {options.solver!r} is not one of {', '.join(SOLVERS)}")
    if options.solver == "dense" and not isinstance(hamiltonian, DenseHamiltonian):
        hamiltonian = to_dense(hamiltonian, dim)
    dtype = hamiltonian[-1].dtype  # of the weights or the matrix, the last field of either form
    # Constant under differentiation: the rule of `_unitary` accounts for all that depends on H and h.
    fixed, fixed_h = jax.lax.stop_gradient((hamiltonian, jnp.asarray(h, dtype)))
    if isinstance(fixed, DenseHamiltonian) and options.solver == "dense":
        return PreparedStep(hamiltonian, dense_unitary(fixed.matrix, fixed_h))
    return PreparedStep(hamiltonian, spectral_bound(fixed, dim) if options.solver == "chebyshev" else None)


def cayley_step(
    hamiltonian: Hamiltonian | PreparedStep, psi: Array, h: float | Array, options: SolverOptions = DEFAULT_OPTIONS
) -> tuple[Array, SolveInfo]:
    """x = (I + ihH)⁻¹(I − ihH)ψ.

    Differentiable in reverse mode, any number of times, in ψ, h and the weights of H, whatever the solver. Forward mode
    (`jax.jvp`, `jax.jacfwd`, `jax.hessian`) JAX refuses with a TypeError: nest `jax.grad` or `jax.jacrev` instead.

    Args:
      hamiltonian: edge list or matrix, or what `prepare_step` made of one for the same h and options.
      psi: [..., D], complex; every leading index is a token of its own.
      h: half the time step.
      options: the solver and its limits. "cg": normal equations, O(iterations) products with H a token. "dense": U
        built once by a Cholesky factorisation, one product a token. "chebyshev": expansion without inner products,
        of the degree that `tol` needs, one product with H a degree. "cg_on_cayley": plain CG on the non-Hermitian
        matrix, the PyTorch original's mistake, kept to be shown; its gradient is as wrong as its answer.

    Returns:
      (x, info): x [..., D]; info.iterations counts those of CG, or the degree; info.residual [...] =
      ‖(I + ihH)x − (I − ihH)ψ‖/‖ψ‖, zero for ψ = 0, says whether they were enough; no gradient flows through info.

    Raises:
      ValueError: unknown solver, or ψ is not complex.
    """
    if not jnp.iscomplexobj(psi):
        raise ValueError(f"ψ must be complex, got {psi.dtype}")
    h = jnp.asarray(h, psi.real.dtype)
    if not isinstance(hamiltonian, PreparedStep):
        hamiltonian = prepare_step(hamiltonian, psi.shape[-1], h, options)
    hamiltonian, solution = hamiltonian
    x, iterations = _unitary(options, solution, hamiltonian, psi, h)
    return x, SolveInfo(iterations, cayley_residual(*jax.lax.stop_gradient((hamiltonian, psi, x, h))))


def cayley_residual(hamiltonian: Hamiltonian, psi: Array, x: Array, h: float | Array) -> Array:
    """‖(I + ihH)x − (I − ihH)ψ‖/‖ψ‖ of each token, [...]: the true residual, not the recurrence's."""
    residual = x - psi + 1j * h * matvec(hamiltonian, x + psi)
    size = jnp.sum(abs_sq(psi), axis=-1)
    return jnp.sqrt(jnp.sum(abs_sq(residual), axis=-1) / jnp.where(size > 0, size, 1))


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _unitary(
    options: SolverOptions, prepared: Array | None, hamiltonian: Hamiltonian, psi: Array, h: Array
) -> tuple[Array, Array]:
    """(U·ψ, iterations)."""
    if options.solver == "dense":
        assert prepared is not None
        return complex_matmul(psi, prepared, HIGHEST), jnp.int32(1)
    if options.solver == "chebyshev":
        assert prepared is not None
        return _chebyshev(hamiltonian, psi, h, prepared, options)
    if options.solver == "cg_on_cayley":
        return cg_on_cayley(hamiltonian, psi, h, options.max_iter), jnp.int32(options.max_iter)
    return _cg(hamiltonian, psi, h, options)


def _unitary_forward(options: SolverOptions, prepared: Array | None, hamiltonian: Hamiltonian, psi: Array, h: Array):
    x, iterations = _unitary(options, prepared, hamiltonian, psi, h)
    return (x, iterations), (prepared, hamiltonian, psi, h, x)


def _unitary_backward(options: SolverOptions, residuals, cotangents):
    prepared, hamiltonian, psi, h, x = residuals
    x_bar, _ = cotangents
    y, _ = _unitary(options, prepared, hamiltonian, x_bar, h)
    mu = (x_bar + y) / 2
    _, pull_back = jax.vjp(lambda ham, step: -1j * step * matvec(ham, x + psi), hamiltonian, h)
    hamiltonian_bar, h_bar = pull_back(mu)
    return None, hamiltonian_bar, y, h_bar


_unitary.defvjp(_unitary_forward, _unitary_backward)


def _cg(hamiltonian: Hamiltonian, psi: Array, h: Array, options: SolverOptions) -> tuple[Array, Array]:
    def apply_h(v: Array) -> Array:
        return h * matvec(hamiltonian, v)

    def normal_matvec(v: Array) -> Array:
        return v + apply_h(apply_h(v))

    z, info = conjugate_gradient(normal_matvec, psi - 1j * apply_h(psi), options.max_iter, options.tol)
    return 2 * z - psi, info.iterations


def dense_unitary(matrix: Array, h: Array) -> Array:
    """U [D, D] of a real symmetric H: Re U = 2M⁻¹ − I and Im U = −2hH·M⁻¹ with M = I + h²H² (Cholesky).

    H commutes with M⁻¹, so both parts are symmetric in exact arithmetic; the imaginary part is symmetrised.
    """
    identity = jnp.eye(matrix.shape[0], dtype=matrix.dtype)
    scaled = h * matrix
    normal = identity + jnp.matmul(scaled, scaled, precision=HIGHEST)
    inverse = jax.scipy.linalg.cho_solve(jax.scipy.linalg.cho_factor(normal, lower=True), identity)
    imag = -2 * jnp.matmul(scaled, inverse, precision=HIGHEST)
    return jax.lax.complex(2 * inverse - identity, (imag + imag.T) / 2)


def _chebyshev(
    hamiltonian: Hamiltonian, psi: Array, h: Array, bound: Array, options: SolverOptions
) -> tuple[Array, Array]:
    """(Uψ, degree) by the Chebyshev series of f(λ) = (1 − ihλ)/(1 + ihλ) = −1 + 2/(1 + ihλ) on [0, bound].

    With t = 2λ/bound − 1 and q = sqrt(1 + ih·bound), from the series of 1/(z − t) at the pole z = −1 + 2i/(h·bound):

        f = −1 + (2/q)·(1 + 2 Σ_k w^k T_k(t)),    w = (1 − q)/(1 + q),  |w| < 1.

    Trefethen (2013), "Approximation Theory and Approximation Practice", chapters 3 and 8. What is cut off after degree
    n is at most (4/|q|)·|w|^(n+1)/(1 − |w|) of ‖ψ‖, its residual at most |q|² times that; n is the least for which
    this is below `tol`, but from 1 to `options.degree`.
    """
    q = jnp.sqrt(1 + 1j * h * bound)
    w = (1 - q) / (1 + q)
    rate = jnp.abs(w)
    needed = jnp.log(options.tol * (1 - rate) / (4 * jnp.abs(q))) / jnp.log(rate) - 1
    degree = jnp.ceil(jnp.clip(needed, 1, options.degree)).astype(jnp.int32)
    scale = jnp.where(bound > 0, 2 / jnp.where(bound > 0, bound, 1), 0)

    def shifted(v: Array) -> Array:
        return scale * matvec(hamiltonian, v) - v

    def step(_, carry):
        previous, current, coefficient, total = carry
        previous, current, coefficient = current, 2 * shifted(current) - previous, coefficient * w
        return previous, current, coefficient, total + coefficient * current

    first, coefficient = shifted(psi), 4 / q * w
    start = (psi, first, coefficient, (2 / q - 1) * psi + coefficient * first)
    return jax.lax.fori_loop(1, degree, step, start)[3], degree


def cg_on_cayley(hamiltonian: Hamiltonian, psi: Array, h: Array, iterations: int, start: Array | None = None) -> Array:
    """Plain CG on (I + ihH)x = (I − ihH)ψ, with real step lengths, as if that matrix were Hermitian.

    The PyTorch original's solver, which the solver "cg_on_cayley" of `cayley_step` is from a start at zero; see above
    why it does not converge. It is not differentiated here.

    Args:
      hamiltonian: edge list or matrix.
      psi: [..., D], complex.
      h: half the time step.
      iterations: all of them are made.
      start: [..., D], the first guess; None is zero.
    """

    def operator(v: Array) -> Array:
        return v + 1j * h * matvec(hamiltonian, v)

    def real_dot(u: Array, v: Array) -> Array:
        return jnp.sum(u.real * v.real + u.imag * v.imag, axis=-1, keepdims=True)

    def step(_, carry):
        x, r, p, rho = carry
        a_p = operator(p)
        alpha = rho / (real_dot(p, a_p) + 1e-12)
        x, r = x + alpha * p, r - alpha * a_p
        rho_next = real_dot(r, r)
        return x, r, r + rho_next / (rho + 1e-12) * p, rho_next

    rhs = psi - 1j * h * matvec(hamiltonian, psi)
    x, r = (jnp.zeros_like(psi), rhs) if start is None else (start, rhs - operator(start))
    return jax.lax.fori_loop(0, iterations, step, (x, r, r, real_dot(r, r)))[0]
