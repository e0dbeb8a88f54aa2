"""The unitary step against dense linear algebra in numpy, and its gradient against autodiff through a dense solve."""

from __future__ import annotations

import functools
import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sem_jax.core.cayley import SolverOptions, cayley_residual, cayley_step, dense_unitary
from sem_jax.core.graph import DenseHamiltonian, SparseHamiltonian, small_world_edges, to_dense

SEEDS = st.integers(0, 2**31 - 1)
# Exact to rounding in double precision for hλ <= 10: the Chebyshev series falls by 1.5 a degree there.
EXACT = {
    "cg": SolverOptions("cg", max_iter=200, tol=1e-14),
    "dense": SolverOptions("dense"),
    "chebyshev": SolverOptions("chebyshev", degree=120),
}
solvers = pytest.mark.parametrize("solver", EXACT)

pytestmark = pytest.mark.usefixtures("quick_compilation")


def random_edges(dim, rng):
    return small_world_edges(dim, 3, 0.3, seed=int(rng.integers(100)))


def laplacian(edges, weights, dim):
    incidence = np.eye(dim)[edges[0]] - np.eye(dim)[edges[1]]
    return incidence.T @ (weights[:, None] * incidence)


def complex_array(rng, *shape):
    return rng.normal(size=shape) + 1j * rng.normal(size=shape)


def numpy_step(matrix, psi, h):
    identity = np.eye(matrix.shape[0])
    return np.linalg.solve(identity + 1j * h * matrix, ((identity - 1j * h * matrix) @ psi[..., None]))[..., 0]


@functools.cache
def jit_step(options):
    return jax.jit(lambda hamiltonian, psi, h: cayley_step(hamiltonian, psi, h, options))


@solvers
@given(seed=SEEDS, dim=st.sampled_from([2, 7]), dt=st.floats(0.0, 2.0))
@pytest.mark.usefixtures("x64")
def test_the_step_is_the_dense_solve_and_unitary(solver, seed, dim, dt):
    rng = np.random.default_rng(seed)
    edges = random_edges(dim, rng)
    weights = rng.uniform(0, 1.2, size=edges.shape[1])  # λ <= 2·degree <= 10
    psi = complex_array(rng, 3, dim)
    x, info = jit_step(EXACT[solver])(SparseHamiltonian(edges, weights), psi, dt / 2)
    # Condition number <= 1 + (hλ)² ~ 100 times the rounding of D·λ ~ 100 operations.
    expected = numpy_step(laplacian(edges, weights, dim), psi, dt / 2)
    np.testing.assert_allclose(x, expected, atol=2e-12)
    np.testing.assert_allclose(np.linalg.norm(x, axis=-1), np.linalg.norm(psi, axis=-1), rtol=1e-12)
    assert info.residual.shape == (3,)
    assert np.all(np.asarray(info.residual) < 2e-12)


@solvers
@pytest.mark.usefixtures("x64")
def test_the_matrix_form_gives_the_same_step(solver):
    rng = np.random.default_rng(0)
    edges = random_edges(7, rng)
    weights, psi = rng.uniform(0, 2, size=edges.shape[1]), complex_array(rng, 3, 7)
    x, _ = jit_step(EXACT[solver])(SparseHamiltonian(edges, weights), psi, 0.2)
    y, _ = jit_step(EXACT[solver])(DenseHamiltonian(laplacian(edges, weights, 7)), psi, 0.2)
    np.testing.assert_allclose(x, y, atol=1e-13)


@pytest.mark.usefixtures("x64")
def test_the_dense_unitary_is_unitary_and_symmetric():
    rng = np.random.default_rng(0)
    edges = random_edges(8, rng)
    u = np.asarray(jax.jit(dense_unitary)(laplacian(edges, rng.uniform(0, 2, size=edges.shape[1]), 8), 0.7))
    np.testing.assert_allclose(u.conj().T @ u, np.eye(8), atol=1e-13)
    np.testing.assert_allclose(u, u.T, atol=1e-14)
    np.testing.assert_allclose(u @ np.ones(8), np.ones(8), atol=1e-13)  # H·1 = 0: the mean is conserved


@solvers
def test_without_a_hamiltonian_or_without_time_nothing_moves(solver):
    edges = small_world_edges(6, 2, 0.0, seed=0)
    psi = complex_array(np.random.default_rng(0), 2, 6).astype(np.complex64)
    options = SolverOptions(solver)
    for weight, h in ((0.0, 0.05), (1.0, 0.0)):
        x, info = jit_step(options)(SparseHamiltonian(edges, np.full(edges.shape[1], weight, np.float32)), psi, h)
        np.testing.assert_allclose(x, psi, atol=1e-6)
        assert np.all(np.asarray(info.residual) < 1e-6)


@solvers
def test_a_zero_wave_stays_zero_with_finite_gradients(solver):
    edges = small_world_edges(6, 2, 0.0, seed=0)

    def loss(weights, psi, h):
        x, _ = cayley_step(SparseHamiltonian(edges, weights), psi, h, SolverOptions(solver))
        return jnp.sum(jnp.square(x.real) + x.imag), x

    psi = np.stack([np.zeros(6), np.ones(6)]).astype(np.complex64)
    weights = np.ones(edges.shape[1], np.float32)
    gradients, x = jax.jit(jax.grad(loss, argnums=(0, 1, 2), has_aux=True))(weights, psi, 0.05)
    np.testing.assert_array_equal(x[0], np.zeros(6))
    chex.assert_tree_all_finite(gradients)


def reference_step(edges, dim, edge_logits, scale_logits, scale_of_edge, psi, h):
    """The same step written with an incidence matrix and a dense complex solve, for autodiff to go through."""
    weights = jax.nn.softmax(scale_logits)[scale_of_edge] * jax.nn.softplus(edge_logits)
    incidence = jnp.eye(dim)[edges[0]] - jnp.eye(dim)[edges[1]]
    matrix = 1j * h * (incidence.T @ (weights[:, None] * incidence))
    return jnp.linalg.solve(jnp.eye(dim) + matrix, (psi - psi @ matrix.T).T).T


@pytest.mark.parametrize(("solver", "form"), [("cg", "sparse"), ("dense", "dense"), ("chebyshev", "sparse")])
@pytest.mark.usefixtures("x64")
def test_gradients_are_those_of_autodiff_through_a_dense_solve(solver, form):
    rng = np.random.default_rng(0)
    dim = 7
    scales = [random_edges(dim, rng) for _ in range(2)]
    edges, scale_of_edge = np.concatenate(scales, axis=1), np.repeat([0, 1], [e.shape[1] for e in scales])
    arguments = (rng.normal(size=edges.shape[1]), rng.normal(size=2), complex_array(rng, 3, dim), np.float64(0.3))
    target = complex_array(rng, 3, dim)

    def distance(x):
        return jnp.sum(jnp.square((x - target).real) + 0.3 * jnp.square((x * target).imag))

    def loss(edge_logits, scale_logits, psi, h):
        weights = jax.nn.softmax(scale_logits)[scale_of_edge] * jax.nn.softplus(edge_logits)
        hamiltonian = SparseHamiltonian(edges, weights)
        hamiltonian = to_dense(hamiltonian, dim) if form == "dense" else hamiltonian
        return distance(cayley_step(hamiltonian, psi, h, EXACT[solver])[0])

    def reference_loss(edge_logits, scale_logits, psi, h):
        return distance(reference_step(edges, dim, edge_logits, scale_logits, scale_of_edge, psi, h))

    which = (0, 1, 2, 3)
    actual = jax.jit(jax.grad(loss, which))(*arguments)
    expected = jax.jit(jax.grad(reference_loss, which))(*arguments)
    for a, e in zip(actual, expected, strict=True):
        assert np.any(np.abs(e) > 1e-3)
        np.testing.assert_allclose(a, e, atol=1e-11 * max(1, np.abs(e).max()))


@pytest.mark.usefixtures("x64")
def test_no_gradient_flows_through_the_report():
    edges = small_world_edges(5, 2, 0.0, seed=0)

    def reported(weights, psi):
        info = cayley_step(SparseHamiltonian(edges, weights), psi, 0.3, SolverOptions("cg", max_iter=1))[1]
        return jnp.sum(info.residual)

    psi = complex_array(np.random.default_rng(0), 5)
    gradients = jax.jit(jax.grad(reported, argnums=(0, 1)))(np.ones(edges.shape[1]), psi)
    assert all(not np.any(g) for g in gradients)


@pytest.mark.usefixtures("x64")
def test_the_residual_is_that_of_the_equation_to_be_solved():
    rng = np.random.default_rng(0)
    edges = random_edges(6, rng)
    weights, psi, h = rng.uniform(0, 2, size=edges.shape[1]), complex_array(rng, 2, 6), 0.4
    matrix = laplacian(edges, weights, 6)
    x, info = jit_step(SolverOptions("cg", max_iter=2, tol=0.0))(SparseHamiltonian(edges, weights), psi, h)
    residual = x + 1j * h * x @ matrix - (psi - 1j * h * psi @ matrix)
    expected = np.linalg.norm(residual, axis=-1) / np.linalg.norm(psi, axis=-1)
    assert np.all(expected > 1e-4)
    np.testing.assert_allclose(info.residual, expected, rtol=1e-9)
    np.testing.assert_allclose(cayley_residual(DenseHamiltonian(matrix), psi, x, h), expected, rtol=1e-9)


def standard_problem(dtype):
    """The default Hamiltonian at start: three small-world graphs with equal weights, D = 64, dt = 0.1; and 32 waves."""
    dim = 64
    scales = [small_world_edges(dim, 8 * 2**k, 0.1, seed=k) for k in range(3)]
    edges = np.concatenate(scales, axis=1)
    weights = np.full(edges.shape[1], np.log(2) / 3)  # softmax(equal)·softplus(0)
    psi = complex_array(np.random.default_rng(0), 32, dim)
    return DenseHamiltonian(laplacian(edges, weights, dim).astype(dtype.real.dtype)), psi.astype(dtype), 0.05


def test_eight_iterations_of_cg_reach_single_precision_rounding():
    hamiltonian, psi, h = standard_problem(np.complex64(0))
    matrix = hamiltonian.matrix.astype(float)
    h_lambda = h * np.linalg.eigvalsh(matrix)[-1]
    assert 0.3 < h_lambda < 1  # the regime of the claim
    exact = numpy_step(matrix, psi.astype(np.complex128), h)
    root = np.sqrt(1 + h_lambda**2)
    rate = (root - 1) / (root + 1)
    size = np.linalg.norm(psi, axis=-1)
    for iterations in (1, 3, 8):
        x, _ = jit_step(SolverOptions("cg", max_iter=iterations, tol=1e-12))(hamiltonian, psi, h)
        error = (np.linalg.norm(x - exact, axis=-1) / size).max()
        # ‖z − z_k‖_A <= 2·rate^k·‖z‖_A, ‖z‖_A = ‖ψ‖, x = 2z − ψ; and rounding, a few units of 6e-8.
        assert error < 4 * rate**iterations + 1e-6
    assert error < 1e-6


def test_the_residual_of_cg_falls_with_every_iteration():
    hamiltonian, psi, h = standard_problem(np.complex64(0))
    largest = [
        float(jnp.max(jit_step(SolverOptions("cg", max_iter=k, tol=1e-12))(hamiltonian, psi, h)[1].residual))
        for k in (1, 3, 8)
    ]
    assert all(after < before / 4 for before, after in itertools.pairwise(largest))
    assert largest[-1] < 1e-6


@pytest.mark.usefixtures("x64")
def test_plain_cg_on_the_cayley_matrix_grows_where_the_normal_equations_converge():
    hamiltonian, psi, h = standard_problem(np.complex128(0))

    def residual(solver, iterations):
        options = SolverOptions(solver, max_iter=iterations, tol=1e-15)
        return np.asarray(jit_step(options)(hamiltonian, psi, 5 * h)[1].residual)

    assert np.median(residual("cg_on_cayley", 20)) > 2 * np.median(residual("cg_on_cayley", 3))
    assert residual("cg_on_cayley", 20).min() > 0.1
    assert residual("cg", 20).max() < 1e-10


@pytest.mark.usefixtures("x64")
def test_chebyshev_errors_fall_geometrically():
    hamiltonian, psi, h = standard_problem(np.complex128(0))
    matrix = hamiltonian.matrix
    exact = numpy_step(matrix, psi, h)
    # On [0, b] the pole i/h lies on the ellipse through z = 2i/(hb) − 1, of radius ρ; the error falls by ρ a degree.
    z = 2j / (h * 2 * np.diagonal(matrix).max()) - 1
    rho = max(abs(z + np.sqrt(z * z - 1)), abs(z - np.sqrt(z * z - 1)))
    errors = {
        degree: np.linalg.norm(
            jit_step(SolverOptions("chebyshev", degree=degree))(hamiltonian, psi, h)[0] - exact, axis=-1
        )
        / np.linalg.norm(psi, axis=-1)
        for degree in (6, 24)
    }
    for degree, error in errors.items():
        assert error.max() < 8 / (rho - 1) * rho**-degree + 1e-13
    assert errors[24].max() < 1e-10


def test_a_token_does_not_feel_its_batch_mates():
    """A constant wave is solved at once, its mates need more: its answer must be the same to the bit."""
    hamiltonian, psi, h = standard_problem(np.complex64(0))
    step = jit_step(SolverOptions("cg", max_iter=20, tol=1e-4))
    psi = psi[:4].copy()
    psi[0] = 1.0 + 1e-4 * psi[1]
    mates = psi.copy()
    mates[1:] = psi[0]
    among, info = step(hamiltonian, psi, h)
    alone, alone_info = step(hamiltonian, mates, h)
    assert alone_info.iterations < info.iterations
    np.testing.assert_array_equal(among[0], alone[0])


def test_an_unknown_solver_is_named_in_the_error():
    with pytest.raises(ValueError, match="'lu' is not one of cg, dense"):
        cayley_step(DenseHamiltonian(jnp.eye(2)), jnp.ones(2, complex), 0.1, SolverOptions("lu"))


def test_a_real_wave_is_refused():
    with pytest.raises(ValueError, match="must be complex"):
        cayley_step(DenseHamiltonian(jnp.eye(2)), jnp.ones(2), 0.1)
