from __future__ import annotations

import functools

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sem_jax.core.krylov import conjugate_gradient

SEEDS = st.integers(0, 2**31 - 1)

pytestmark = pytest.mark.usefixtures("x64", "quick_compilation")


def positive_definite(rng, eigenvalues):
    basis, _ = np.linalg.qr(rng.normal(size=(len(eigenvalues),) * 2) + 1j * rng.normal(size=(len(eigenvalues),) * 2))
    return basis @ np.diag(eigenvalues) @ basis.conj().T, basis


@functools.partial(jax.jit, static_argnums=(2, 3))
def solve(matrix, rhs, max_iter=50, tol=1e-12):
    return conjugate_gradient(lambda v: v @ matrix.T, rhs, max_iter, tol)


def complex_array(rng, *shape):
    return rng.normal(size=shape) + 1j * rng.normal(size=shape)


@given(seed=SEEDS, dim=st.sampled_from([1, 6]), spread=st.floats(0, 2))
def test_the_answer_is_that_of_a_dense_solve(seed, dim, spread):
    rng = np.random.default_rng(seed)
    matrix, _ = positive_definite(rng, 10 ** rng.uniform(0, spread, size=dim))
    rhs = complex_array(rng, 2, 3, dim)
    x, info = solve(matrix, rhs)
    # Relative error <= κ·residual with κ <= 100.
    expected = np.linalg.solve(matrix, rhs[..., None])[..., 0]
    np.testing.assert_allclose(x, expected, atol=1e-9 * np.abs(expected).max())
    true_residual = np.linalg.norm(rhs - x @ matrix.T, axis=-1) / np.linalg.norm(rhs, axis=-1)
    assert np.all(true_residual < 1e-11)
    assert info.residual.shape == (2, 3)
    assert np.all(np.asarray(info.residual) <= 1e-12)


def test_as_many_iterations_are_taken_as_there_are_different_eigenvalues():
    rng = np.random.default_rng(0)
    matrix, basis = positive_definite(rng, [1.0, 1.0, 2.0, 2.0, 5.0, 5.0])
    _, info = solve(matrix, complex_array(rng, 6))
    assert info.iterations == 3
    _, info = solve(matrix, basis[:, 0] + basis[:, 4])
    assert info.iterations == 2
    _, info = solve(matrix, 3j * basis[:, 2])
    assert info.iterations == 1


def test_iterations_are_those_of_the_slowest_right_hand_side():
    rng = np.random.default_rng(0)
    matrix, basis = positive_definite(rng, [1.0, 2.0, 5.0, 9.0])
    _, info = solve(matrix, np.stack([basis[:, 0], basis[:, 0] + basis[:, 1] + basis[:, 2], basis[:, 3]]))
    assert info.iterations == 3


@given(seed=SEEDS)
def test_an_answer_does_not_depend_on_its_batch_mates(seed):
    """One right-hand side is done after one step, its mates go on for longer: it must stay as it is, to the bit."""
    rng = np.random.default_rng(seed)
    matrix, basis = positive_definite(rng, np.geomspace(1, 100, 6))
    easy = 2.5 * basis[:, 0] + 1e-4 * basis[:, 1]
    alone, alone_info = solve(matrix, np.stack([easy, easy, easy]), 50, 1e-3)
    among, info = solve(matrix, np.stack([complex_array(rng, 6), easy, np.zeros(6)]), 50, 1e-3)
    assert alone_info.iterations < info.iterations
    np.testing.assert_array_equal(among[1], alone[1])
    np.testing.assert_array_equal(info.residual[1], alone_info.residual[1])


def test_a_zero_right_hand_side_is_answered_at_once():
    matrix = np.eye(3)
    x, info = solve(matrix, np.zeros((2, 3), complex))
    np.testing.assert_array_equal(x, np.zeros((2, 3)))
    np.testing.assert_array_equal(info.residual, np.zeros(2))
    assert info.iterations == 0


def test_iterations_stop_at_the_limit_and_the_residual_says_so():
    rng = np.random.default_rng(0)
    matrix, _ = positive_definite(rng, np.geomspace(1, 1e4, 8))
    rhs = complex_array(rng, 8)
    x, info = solve(matrix, rhs, 2)
    assert info.iterations == 2
    # The recurrence's residual is the true one up to rounding.
    np.testing.assert_allclose(info.residual, np.linalg.norm(rhs - matrix @ x) / np.linalg.norm(rhs), rtol=1e-10)
    assert info.residual > 1e-2


def test_the_tolerance_is_relative_to_the_right_hand_side():
    rng = np.random.default_rng(0)
    matrix, _ = positive_definite(rng, np.geomspace(1, 100, 8))
    rhs = complex_array(rng, 8)
    x, info = solve(matrix, rhs, 50, 1e-6)
    for factor in (2.0**-600, 2.0**600):  # whose square is no number of double precision
        scaled, scaled_info = solve(matrix, factor * rhs, 50, 1e-6)
        assert info.iterations == scaled_info.iterations
        np.testing.assert_array_equal(scaled, factor * np.asarray(x))


def test_real_systems_stay_real():
    x, _ = solve(np.diag([1.0, 2.0, 4.0]), np.array([1.0, 2.0, 4.0]))
    assert x.dtype == np.float64
    np.testing.assert_allclose(x, np.ones(3), atol=1e-12)
