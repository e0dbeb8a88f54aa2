"""The unitary step: its equation, its convergence, and the PyTorch original's own solve. All solvers in all regimes are
in test_solver_grid.py."""

from __future__ import annotations

import functools
import itertools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sem_jax.core.cayley import SolverOptions, cayley_residual, cayley_step, dense_unitary
from sem_jax.core.graph import DenseHamiltonian, SparseHamiltonian, small_world_edges

SEEDS = st.integers(0, 2**31 - 1)
SOLVERS = ("cg", "dense", "chebyshev")
GOLDENS = Path(__file__).resolve().parents[1] / "goldens"

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


@pytest.mark.parametrize("solver", SOLVERS)
@given(seed=SEEDS, dim=st.sampled_from([2, 7]), dt=st.floats(0.0, 2.0))
@pytest.mark.usefixtures("x64")
def test_the_step_is_the_dense_solve_and_unitary(solver, seed, dim, dt):
    rng = np.random.default_rng(seed)
    edges = random_edges(dim, rng)
    weights = rng.uniform(0, 1.2, size=edges.shape[1])  # λ <= 2·degree <= 10
    psi = complex_array(rng, 3, dim)
    options = SolverOptions(solver, max_iter=200, tol=1e-14, degree=200)
    x, info = jit_step(options)(SparseHamiltonian(edges, weights), psi, dt / 2)
    # Condition number <= 1 + (hλ)² ~ 100 times the rounding of D·λ ~ 100 operations.
    expected = numpy_step(laplacian(edges, weights, dim), psi, dt / 2)
    np.testing.assert_allclose(x, expected, atol=2e-12)
    np.testing.assert_allclose(np.linalg.norm(x, axis=-1), np.linalg.norm(psi, axis=-1), rtol=1e-12)
    assert info.residual.shape == (3,)
    assert np.all(np.asarray(info.residual) < 2e-12)


@pytest.mark.usefixtures("x64")
def test_the_dense_unitary_is_unitary_and_symmetric():
    rng = np.random.default_rng(0)
    edges = random_edges(8, rng)
    u = np.asarray(jax.jit(dense_unitary)(laplacian(edges, rng.uniform(0, 2, size=edges.shape[1]), 8), 0.7))
    np.testing.assert_allclose(u.conj().T @ u, np.eye(8), atol=1e-13)
    np.testing.assert_allclose(u, u.T, atol=1e-14)
    np.testing.assert_allclose(u @ np.ones(8), np.ones(8), atol=1e-13)  # H·1 = 0: the mean is conserved


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


def grows_with_its_iterations(residual):
    """Of a solver that is none: the residual of every token, {iterations: [...]}."""
    return np.all(residual[20] > residual[8]) and np.all(residual[8] > residual[3]) and np.all(residual[3] > 0.1)


@pytest.mark.usefixtures("x64")
def test_plain_cg_on_the_cayley_matrix_grows_where_the_normal_equations_converge():
    hamiltonian, psi, h = standard_problem(np.complex128(0))

    def residual(solver, iterations):
        options = SolverOptions(solver, max_iter=iterations, tol=1e-15)
        return np.asarray(jit_step(options)(hamiltonian, psi, h)[1].residual)

    assert grows_with_its_iterations({k: residual("cg_on_cayley", k) for k in (3, 8, 20)})
    assert residual("cg", 20).max() < 1e-14


@pytest.mark.parametrize("name", ["tiny", "wide"])
@pytest.mark.usefixtures("x64")
def test_cg_on_cayley_is_the_solve_of_the_original(name):
    """Layer 0 of the PyTorch original's propagator on the last mixer's output, after the Kerr phase."""
    with np.load(GOLDENS / f"model_{name}.npz") as file:
        config = json.loads(str(file["config"]))
        wave = file[f"out/mamba{config['num_layers'] - 1}"].astype(np.complex128)
        alpha, matrix = file["param/propagator.layers.0.alpha"], file["out/hamiltonian0.dense"].astype(float)
        recorded = {k: file[f"legacy_cg/{k}"].astype(np.complex128) for k in (1, 3, 8, 20)}
    power = np.abs(wave) ** 2
    psi = wave * np.exp(1j * alpha * power / power.mean(axis=-1, keepdims=True))
    hamiltonian, h = DenseHamiltonian(matrix), config["cayley_dt"] / 2
    for iterations, expected in recorded.items():
        x, _ = jit_step(SolverOptions("cg_on_cayley", max_iter=iterations))(hamiltonian, psi, h)
        # The recording is float32. Its errors grow as the iterates do, so relative to these every iteration adds no
        # more than a few roundings of 6e-8.
        assert np.abs(x - expected).max() < 4 * (iterations + 1) * 6e-8 * np.abs(expected).max()
    residual = {k: np.asarray(cayley_residual(hamiltonian, psi, x, h)) for k, x in recorded.items()}
    assert grows_with_its_iterations(residual)


def test_an_unknown_solver_is_named_in_the_error():
    with pytest.raises(ValueError, match="'lu' is not one of cg, dense"):
        cayley_step(DenseHamiltonian(jnp.eye(2)), jnp.ones(2, complex), 0.1, SolverOptions("lu"))


def test_a_real_wave_is_refused():
    with pytest.raises(ValueError, match="must be complex"):
        cayley_step(DenseHamiltonian(jnp.eye(2)), jnp.ones(2), 0.1)
