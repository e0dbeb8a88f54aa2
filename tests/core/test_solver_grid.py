"""Every solver of the unitary step in every regime, against the same step by dense algebra in double precision.

The grid is (solver and form of H) × (D, sparsity) × precision × hλ. One program a cell gives the answer, its report and
the gradients; the tests read what they need from it.

Tolerances, with u the unit roundoff: to evaluate (I + ihH)x rounds by a few u·(1 + hλ)·‖x‖, so no residual can be
expected to be smaller, and the error is no larger than the residual because (I + ihH)⁻¹ has norm 1 (`step_error`; sums
are pairwise, so that D does not enter).
"""

from __future__ import annotations

import functools
import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sem_jax.core.cayley import SolverOptions, cayley_step
from sem_jax.core.graph import combine_scales, small_world_edges, to_dense

pytestmark = pytest.mark.usefixtures("quick_compilation")

NUM_SCALES, TOKENS, LAYERS = 3, 5, 16
SHAPES = [(8, 2), (24, 1), (24, 2)]  # D, neighbours in the finest graph
H_LAMBDA = (0.0, 1e-6, 0.5, 10.0)
SOLVERS = [("cg", "edges"), ("cg", "matrix"), ("dense", "edges"), ("chebyshev", "edges")]
DTYPES = ["complex64", "complex128"]

each_solver = pytest.mark.parametrize(("solver", "form"), SOLVERS)


def grid(test):
    for name, values in (("dtype", DTYPES), ("shape", SHAPES), (("solver", "form"), SOLVERS)):
        test = pytest.mark.parametrize(name, values)(test)
    return test


def unit_roundoff(dtype):
    return np.finfo(dtype).eps / 2


def step_error(h_lambda, dtype="complex128"):
    """Largest ‖error of U·v‖/‖v‖: ten roundings."""
    return 10 * (1 + h_lambda) * unit_roundoff(dtype)


def options(solver, dtype="complex128"):
    """Iterations to spare, so that rounding is all that is left of the error."""
    return SolverOptions(solver, max_iter=200, tol=float(unit_roundoff(dtype)), degree=200)


def norm(x):
    return np.linalg.norm(x, axis=-1)


class Problem(NamedTuple):
    """What a step depends on."""

    edge_weights: list  # of each scale [E_k], before softplus
    scale_logits: np.ndarray  # [NUM_SCALES]
    psi: np.ndarray  # [TOKENS, D]
    h: np.ndarray  # scalar


@functools.cache
def edges_of(dim, sparsity):
    return [small_world_edges(dim, sparsity * 2**k, 0.3, seed=k) for k in range(NUM_SCALES)]


@functools.cache
def problem_and_probe(shape, dtype):
    """Weights and waves, the first of them zero; and what the answer is multiplied with to be a number."""
    dim, sparsity = shape
    rng = np.random.default_rng(dim + sparsity)
    real = np.zeros(0, dtype).real.dtype
    psi, probe = (
        (rng.normal(size=(TOKENS, dim)) + 1j * rng.normal(size=(TOKENS, dim))).astype(dtype) for _ in range(2)
    )
    psi[0] = 0
    weights = [rng.normal(size=edges.shape[1]).astype(real) for edges in edges_of(*shape)]
    return Problem(weights, rng.normal(size=NUM_SCALES).astype(real), psi, np.zeros((), real)), probe


def hamiltonian_of(shape, problem, form="edges"):
    edges = edges_of(*shape)
    sparse = combine_scales(edges, problem.edge_weights, problem.scale_logits)
    return to_dense(sparse, shape[0]) if form == "matrix" else sparse


def matrix_of(shape, problem, xp=np):
    """H in numpy or jax.numpy, by incidence matrices: Σ share·softplus(e)·(e_i − e_j)(e_i − e_j)ᵀ, [D, D] float64."""
    share = xp.exp(problem.scale_logits.astype(float))
    total = 0
    for k, edges in enumerate(edges_of(*shape)):
        incidence = np.eye(shape[0])[edges[0]] - np.eye(shape[0])[edges[1]]
        weights = share[k] / share.sum() * xp.log1p(xp.exp(problem.edge_weights[k].astype(float)))
        total = total + incidence.T @ (weights[:, None] * incidence)
    return total


def inner(probe, x):
    return jnp.sum(probe.real * x.real + probe.imag * x.imag)


def solved_loss(shape, solver, form, settings):
    def loss(problem, probe):
        x, info = cayley_step(hamiltonian_of(shape, problem, form), problem.psi, problem.h, settings)
        return inner(probe, x), (x, info)

    return loss


def exact_loss(shape):
    """The same in terms of a dense complex solve, for autodiff to go through."""

    def loss(problem, probe):
        identity = jnp.eye(shape[0])
        step = 1j * problem.h * matrix_of(shape, problem, jnp)
        x = jnp.linalg.solve(identity + step, (identity - step) @ problem.psi.T).T
        return inner(probe, x), x

    return loss


@functools.cache
def exact_gradient(shape):
    return jax.jit(jax.grad(exact_loss(shape), has_aux=True))


@functools.cache
def solved_gradient(shape, solver, form, dtype):
    return jax.jit(jax.grad(solved_loss(shape, solver, form, options(solver, dtype)), has_aux=True))


class Outcome(NamedTuple):
    """One cell at one hλ, actual and expected."""

    problem: Problem
    probe: np.ndarray
    eigenvalue: float  # λ, the largest
    x: np.ndarray
    exact_x: np.ndarray
    residual: np.ndarray
    after_layers: np.ndarray
    gradient: Problem
    exact_gradient: Problem


@functools.cache
def outcomes(solver, form, shape, dtype):
    """{hλ: Outcome}."""
    result = {}
    with jax.enable_x64(True):
        problem, probe = problem_and_probe(shape, dtype)
        eigenvalue = np.linalg.eigvalsh(matrix_of(shape, problem))[-1]
        for h_lambda in H_LAMBDA:
            problem = problem._replace(h=np.asarray(h_lambda / eigenvalue, problem.h.dtype))
            solve = solved_gradient(shape, solver, form, dtype)
            gradient, (x, info) = jax.device_get(solve(problem, probe))
            assert x.dtype == dtype
            after = x
            for _ in range(LAYERS - 1):
                after = solve(problem._replace(psi=after), probe)[1][0]
            wide = jax.tree.map(lambda a: a.astype(np.result_type(a, np.float64)), (problem, probe))
            exact_gradients, exact_x = jax.device_get(exact_gradient(shape)(*wide))
            result[h_lambda] = Outcome(
                problem=problem, probe=probe, eigenvalue=eigenvalue, x=x, exact_x=exact_x, residual=info.residual,
                after_layers=jax.device_get(after), gradient=gradient, exact_gradient=exact_gradients,
            )  # fmt: skip
    return result


@grid
def test_the_step_is_that_of_dense_algebra(solver, form, shape, dtype):
    for h_lambda, cell in outcomes(solver, form, shape, dtype).items():
        matrix = 1j * float(cell.problem.h) * matrix_of(shape, cell.problem)
        identity = np.eye(shape[0])
        expected = np.linalg.solve(identity + matrix, (identity - matrix) @ cell.problem.psi.astype(complex).T).T
        np.testing.assert_allclose(cell.exact_x, expected, atol=1e-13 * (1 + h_lambda))
        assert np.all(norm(cell.x - expected) <= step_error(h_lambda, dtype) * norm(cell.problem.psi))


@grid
def test_the_residual_is_rounding(solver, form, shape, dtype):
    for h_lambda, cell in outcomes(solver, form, shape, dtype).items():
        assert np.all(cell.residual <= step_error(h_lambda, dtype))


@grid
def test_sixteen_layers_keep_the_norm(solver, form, shape, dtype):
    for h_lambda, cell in outcomes(solver, form, shape, dtype).items():
        before = norm(cell.problem.psi[1:].astype(complex))
        drift = np.abs(norm(cell.after_layers[1:].astype(complex)) / before - 1)
        # Ten roundings a layer: in float32 this is 9.5e-6 while hλ <= 1.
        assert np.all(drift <= 10 * max(1, h_lambda) * LAYERS * unit_roundoff(dtype))


@grid
def test_a_zero_wave_stays_zero_beside_others(solver, form, shape, dtype):
    for cell in outcomes(solver, form, shape, dtype).values():
        np.testing.assert_array_equal(cell.x[0], 0)
        np.testing.assert_array_equal(cell.after_layers[0], 0)
        assert cell.residual[0] == 0


@grid
def test_without_time_nothing_moves(solver, form, shape, dtype):
    cell = outcomes(solver, form, shape, dtype)[0.0]
    np.testing.assert_allclose(cell.x, cell.problem.psi, rtol=4 * unit_roundoff(dtype))  # CG scales to and fro
    for gradient in cell.gradient.edge_weights:
        np.testing.assert_array_equal(gradient, 0)


def gradient_limits(problem, probe, eigenvalue, step_error):
    """Largest error of each gradient when every U·v is off by step_error·‖v‖.

    A change dH of H moves the loss by Re(−ih μᵀ dH (x + ψ)), with μ = (x̄ + U x̄)/2 and ‖x̄‖ the norm of the probe: an
    error of at most h·‖dH‖·2·step_error·‖x̄‖·‖ψ‖ a token. ‖dH‖ is at most 2 for an edge (the slope of its weight is
    below 1), and λ for a scale's logit (a difference of positive semi-definite matrices of norm <= λ). For h, H/h
    replaces dH.
    """
    h = float(problem.h)
    moved = 2 * step_error * np.sum(norm(probe) * norm(problem.psi))
    of_psi = step_error * norm(probe)[:, None]
    return Problem([2 * h * moved] * NUM_SCALES, h * eigenvalue * moved, of_psi, eigenvalue * moved)


def assert_gradients_within(actual, expected, limits):
    for a, e, limit in zip(*map(jax.tree.leaves, (actual, expected, limits)), strict=True):
        assert np.max(np.abs(a - e) - limit) <= 0


@grid
def test_gradients_are_those_of_autodiff_through_a_dense_solve(solver, form, shape, dtype):
    for h_lambda, cell in outcomes(solver, form, shape, dtype).items():
        limits = gradient_limits(cell.problem, cell.probe, cell.eigenvalue, step_error(h_lambda, dtype))
        assert_gradients_within(cell.gradient, cell.exact_gradient, limits)


# In what follows one shape and one hλ where the solvers have work to do.
SHAPE, WORK = (24, 1), 3.0


@functools.cache
def working_problem(dtype="complex128", h_lambda=WORK):
    problem, probe = problem_and_probe(SHAPE, dtype)
    eigenvalue = np.linalg.eigvalsh(matrix_of(SHAPE, problem))[-1]
    return problem._replace(h=np.asarray(h_lambda / eigenvalue, problem.h.dtype)), probe, eigenvalue


@pytest.mark.parametrize("solver", ["cg", "chebyshev"])
@pytest.mark.usefixtures("x64")
def test_the_tolerance_holds_forward_and_backward(solver):
    problem, probe, eigenvalue = working_problem()
    exact_gradients, exact_x = exact_gradient(SHAPE)(problem, probe)
    iterations = []
    for tol in (1e-1, 1e-4, 1e-8):
        settings = SolverOptions(solver, max_iter=200, tol=tol, degree=200)
        gradient = jax.jit(jax.grad(solved_loss(SHAPE, solver, "edges", settings), has_aux=True))
        gradients, (x, info) = gradient(problem, probe)
        # CG leaves tol·‖(I − ihH)ψ‖ of z, and x = 2z − ψ.
        limit = 2 * tol * np.sqrt(1 + WORK**2)
        assert np.all(np.asarray(info.residual) <= limit)
        assert np.all(norm(x - exact_x) <= limit * norm(problem.psi))
        assert_gradients_within(gradients, exact_gradients, gradient_limits(problem, probe, eigenvalue, limit))
        iterations.append(int(info.iterations))
    assert all(fewer < more for fewer, more in itertools.pairwise(iterations))


@pytest.mark.parametrize("h_lambda", [0.5, 10.0])
@pytest.mark.usefixtures("x64")
def test_the_degree_of_chebyshev_is_the_one_needed(h_lambda):
    problem, _, _ = working_problem("complex128", h_lambda)
    matrix, tol = matrix_of(SHAPE, problem), 1e-10
    identity, step = np.eye(len(matrix)), 1j * float(problem.h) * matrix
    exact = np.linalg.solve(identity + step, (identity - step) @ problem.psi.T).T
    # On [0, b] the pole i/h lies on the ellipse through z = 2i/(hb) − 1, of radius ρ; the error falls by ρ a degree.
    z = 2j / (float(problem.h) * 2 * np.diagonal(matrix).max()) - 1
    rho = max(abs(z + np.sqrt(z * z - 1)), abs(z - np.sqrt(z * z - 1)))

    def solve(degree):
        settings = SolverOptions("chebyshev", tol=tol, degree=degree)
        x, info = jax.jit(lambda p: cayley_step(hamiltonian_of(SHAPE, p), p.psi, p.h, settings))(problem)
        error = (norm(x - exact)[1:] / norm(problem.psi)[1:]).max()
        assert error <= 8 * rho / (rho - 1) * rho ** -int(info.iterations) + 1e-13
        return int(info.iterations), float(np.max(info.residual))

    needed, residual = solve(200)
    assert needed < 200
    assert residual <= tol
    assert solve(needed)[0] == needed
    short, residual = solve(needed // 2)
    assert short == needed // 2
    assert residual > 10 * tol  # where a run warns


@each_solver
def test_a_token_does_not_feel_its_batch_mates(solver, form):
    """A nearly constant wave is solved at once, its mates take longer or are not even numbers: no bit may change."""
    problem, _, _ = working_problem("complex64")
    settings = SolverOptions(solver, max_iter=50, tol=1e-4)
    step = jax.jit(lambda psi: cayley_step(hamiltonian_of(SHAPE, problem, form), psi, problem.h, settings))
    easy = 1 + 1e-6 * problem.psi[1]
    mates = np.stack([easy, problem.psi[2], np.full_like(easy, np.nan), 0 * easy, 1e6 * problem.psi[3]])
    among, among_info = step(mates)
    alone, alone_info = step(np.stack([easy] * TOKENS))
    if solver == "cg":
        assert alone_info.iterations < among_info.iterations
    np.testing.assert_array_equal(among[0], alone[0])
    np.testing.assert_array_equal(among_info.residual[0], alone_info.residual[0])
    assert np.all(np.isfinite(among[np.array([0, 1, 3, 4])]))
    assert np.isnan(among_info.residual[2])  # and the one that is not a number says so


@each_solver
@pytest.mark.usefixtures("x64")
def test_vmap_is_a_loop(solver, form):
    """Over ψ, h and the weights at once, with gradients."""
    problem, probe, eigenvalue = working_problem()
    gradient = solved_gradient(SHAPE, solver, form, "complex128")
    batch = [
        problem._replace(h=problem.h * factor, edge_weights=[factor * w for w in problem.edge_weights])
        for factor in (0.1, 0.5, 1.0)
    ]
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *batch)
    together = jax.device_get(jax.jit(jax.vmap(gradient, in_axes=(0, None)))(stacked, probe))
    for k, single in enumerate(batch):
        gradients, (x, info) = jax.tree.map(lambda leaf, k=k: leaf[k], together)
        expected_gradients, (expected, expected_info) = jax.device_get(gradient(single, probe))
        assert info.iterations == expected_info.iterations
        # The same arithmetic, summed in another order.
        assert np.all(norm(x - expected) <= step_error(WORK) * norm(single.psi))
        limits = gradient_limits(single, probe, eigenvalue, step_error(WORK))
        assert_gradients_within(gradients, expected_gradients, limits)


def test_vmap_over_tokens_stops_each_by_itself():
    problem, _, _ = working_problem("complex64")
    hamiltonian = hamiltonian_of(SHAPE, problem, "matrix")
    settings = SolverOptions("cg", max_iter=50, tol=1e-4)
    psi = problem.psi.copy()
    psi[1] = 1

    def step(wave):
        return cayley_step(hamiltonian, wave, problem.h, settings)

    x, info = jax.jit(jax.vmap(step))(psi)
    expected, expected_info = jax.jit(step)(psi)
    np.testing.assert_array_equal(info.iterations[:2], [0, 1])  # zero; H·1 = 0
    assert np.max(info.iterations) == expected_info.iterations > 2
    # The same recurrence, summed in another order.
    np.testing.assert_allclose(x, expected, atol=step_error(WORK, "complex64") * norm(psi).max())


@each_solver
@pytest.mark.usefixtures("x64")
def test_rematerialisation_changes_no_gradient(solver, form):
    problem, probe, _ = working_problem()
    loss = solved_loss(SHAPE, solver, form, options(solver))
    plain = solved_gradient(SHAPE, solver, form, "complex128")(problem, probe)[0]
    again = jax.jit(jax.grad(jax.checkpoint(loss), has_aux=True))(problem, probe)[0]
    for a, e in zip(jax.tree.leaves(again), jax.tree.leaves(plain), strict=True):
        np.testing.assert_allclose(a, e, atol=1e-13 * np.abs(e).max())


@each_solver
@pytest.mark.usefixtures("x64")
def test_second_derivatives_are_those_of_autodiff_through_a_dense_solve(solver, form):
    """The gradient of a directional derivative, by reverse mode twice."""
    problem, probe, _ = working_problem()
    rng = np.random.default_rng(0)
    direction = jax.tree.map(lambda leaf: (0.1 + rng.normal(size=leaf.shape)).astype(leaf.dtype), problem)

    def curvature(loss):
        def along(problem):
            slopes = jax.grad(lambda p: loss(p, probe)[0])(problem)
            return sum(jnp.sum((g * d).real) for g, d in zip(*map(jax.tree.leaves, (slopes, direction)), strict=True))

        return jax.jit(jax.grad(along))(problem)

    actual = curvature(solved_loss(SHAPE, solver, form, options(solver)))
    expected = curvature(exact_loss(SHAPE))
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        # Four steps instead of two, and sums of terms of either sign.
        np.testing.assert_allclose(a, e, atol=10 * step_error(WORK) * np.abs(e).max())


@each_solver
def test_forward_mode_is_refused(solver, form):
    problem, _, _ = working_problem("complex64")

    def step(psi):
        return cayley_step(hamiltonian_of(SHAPE, problem, form), psi, problem.h, options(solver))[0]

    with pytest.raises(TypeError, match="forward-mode"):
        jax.jit(lambda psi: jax.jvp(step, (psi,), (psi,))).lower(problem.psi)


def test_memory_of_cg_does_not_grow_with_iterations():
    problem, probe, _ = working_problem("complex64")

    def scratch(max_iter):
        settings = SolverOptions("cg", max_iter=max_iter, tol=0.0)
        gradient = jax.jit(jax.grad(solved_loss(SHAPE, "cg", "edges", settings), has_aux=True))
        wide = problem._replace(psi=np.tile(problem.psi, (200, 1)))
        return gradient.lower(wide, np.tile(probe, (200, 1))).compile().memory_analysis().temp_size_in_bytes

    few, many = scratch(2), scratch(2000)
    assert few == many
    assert few >= 3 * 200 * problem.psi.nbytes  # x, r and p at least: the analysis sees the solve
