from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sem_jax.core import scan
from sem_jax.core.scan import METHODS, clamped_recurrence, linear_recurrence

SEEDS = st.integers(0, 2**31 - 1)
CASES = [*((length, np.complex128) for length in (0, 1, 8, 9)), (9, np.float64)]

pytestmark = pytest.mark.usefixtures("x64", "quick_compilation")


def problem(length, dtype, seed=0):
    """(a, b, h0) with |a| <= 1 and one a = 0, as at the start of a document."""
    rng = np.random.default_rng(seed)

    def draw(*dims):
        x = rng.uniform(-1, 1, size=dims)
        return x + 1j * rng.uniform(-1, 1, size=dims) if dtype == np.complex128 else x

    a = draw(length, 2, 3) / np.sqrt(2)
    if length > 2:
        a[length // 2, 0] = 0
    return a, draw(length, 2, 3), draw(2, 3)


def loop(a, b, h0):
    h, out = h0, np.empty_like(b)
    for t in range(len(a)):
        h = a[t] * h + b[t]
        out[t] = h
    return out, h


def weighted(outputs, weights):
    """A real loss that weighs every entry of h and of h_last by a number of its own."""
    return sum((x * w).real.sum() for x, w in zip(outputs, weights, strict=True))


@functools.cache
def evaluate(method):
    """(arguments, weights) -> outputs and the gradients of their weighted sum, compiled once a length."""

    def loss(arguments, weights):
        outputs = linear_recurrence(*arguments, method)
        return weighted(outputs, weights), outputs

    return jax.jit(jax.grad(loss, has_aux=True))


# |a| <= 1 and nine steps: every sum has at most 10 terms below 10, so rounding stays below 10·10·1e-16.
TOLERANCE = 2e-14


@pytest.mark.parametrize(("length", "dtype"), CASES)
@pytest.mark.parametrize("method", METHODS)
def test_every_form_is_the_loop(method, length, dtype):
    arguments, weights = problem(length, dtype), problem(length, dtype, seed=1)[1:]
    _, (h, h_last) = evaluate(method)(arguments, weights)
    expected, expected_last = loop(*arguments)
    assert h.shape == expected.shape
    np.testing.assert_allclose(h, expected, atol=TOLERANCE)
    np.testing.assert_allclose(h_last, expected_last, atol=TOLERANCE)


@pytest.mark.parametrize(("length", "dtype"), CASES)
@pytest.mark.parametrize("method", METHODS)
def test_the_gradient_predicts_small_changes_of_the_loop(method, length, dtype):
    arguments, weights = problem(length, dtype), problem(length, dtype, seed=1)[1:]
    gradients, _ = evaluate(method)(arguments, weights)
    epsilon = 1e-5
    for seed in (2, 3):
        direction = problem(length, dtype, seed)
        plus, minus = (
            weighted(loop(*(x + sign * epsilon * d for x, d in zip(arguments, direction, strict=True))), weights)
            for sign in (1, -1)
        )
        predicted = sum(np.sum(g * d).real for g, d in zip(gradients, direction, strict=True))
        # Central differences: ε² times a third derivative below 1e3, and rounding 1e2·1e-16/ε.
        np.testing.assert_allclose(predicted, (plus - minus) / (2 * epsilon), atol=1e-7)


@pytest.mark.parametrize("method", METHODS)
def test_the_gradient_is_the_sum_over_paths(method):
    """∂h_s/∂b_t = a_{t+1}···a_s, written out: no recurrence on this side."""
    length = 9
    a, b, h0 = problem(length, np.complex128)
    weights = problem(length, np.complex128, seed=1)[1:]
    gradients, _ = evaluate(method)((a, b, h0), weights)
    late = weights[0].copy()
    late[-1] += weights[1]  # h_last is the last h
    b_bar = [sum(late[s] * np.prod(a[t + 1 : s + 1], axis=0) for s in range(t, length)) for t in range(length)]
    h0_bar = sum(late[s] * np.prod(a[: s + 1], axis=0) for s in range(length))
    before = [h0, *loop(a, b, h0)[0][:-1]]
    for actual, expected in zip(gradients, [np.multiply(b_bar, before), b_bar, h0_bar], strict=True):
        np.testing.assert_allclose(actual, expected, atol=TOLERANCE)


@pytest.mark.parametrize("method", METHODS)
def test_a_carry_joins_two_halves(method):
    a, b, h0 = problem(9, np.complex128)
    weights = problem(9, np.complex128, seed=1)[1:]
    whole, last = loop(a, b, h0)
    for cut in (0, 1, 4, 9):
        _, (first, carry) = evaluate(method)((a[:cut], b[:cut], h0), (weights[0][:cut], weights[1]))
        _, (second, end) = evaluate(method)((a[cut:], b[cut:], carry), (weights[0][cut:], weights[1]))
        np.testing.assert_allclose(np.concatenate([first, second]), whole, atol=TOLERANCE)
        np.testing.assert_allclose(end, last, atol=TOLERANCE)


def test_auto_is_the_form_of_the_backend():
    a, b, h0 = problem(5, np.complex128)
    named = linear_recurrence(jnp.asarray(a), b, h0, scan.default_method())
    np.testing.assert_array_equal(linear_recurrence(jnp.asarray(a), b, h0)[0], named[0])


def test_an_unknown_method_is_named_in_the_error():
    a, b, h0 = problem(2, np.float64)
    with pytest.raises(ValueError, match="'parallel' is not one of sequential"):
        linear_recurrence(a, b, h0, "parallel")


@pytest.mark.parametrize("wrong", ["length", "carry", "dtype"])
def test_arguments_that_do_not_fit_are_refused(wrong):
    a, b, h0 = problem(3, np.float64)
    arguments = {"length": (a, b[:2], h0), "carry": (a, b, h0[:1]), "dtype": (a.astype(complex), b, h0)}[wrong]
    with pytest.raises(ValueError, match="must agree in shape and dtype"):
        linear_recurrence(*arguments)


jit_clamped = jax.jit(clamped_recurrence)


def clamped_loop(a, b, h0, position, interval, bound):
    h, out, clamped = h0.copy(), np.empty_like(b), 0
    for t in range(len(a)):
        for row in range(h.shape[0]):
            h[row] = a[t, row] * h[row] + b[t, row]
            if (position[t, row] + 1) % interval == 0:
                r = np.sqrt(np.abs(h[row]) ** 2 + 1e-8)
                clamped += np.sum(r > bound)
                h[row] *= np.minimum(r, bound) / r
        out[t] = h
    return out, clamped


@given(seed=SEEDS, interval=st.integers(1, 4), start=st.integers(0, 3))
def test_the_clamped_recurrence_is_its_loop(seed, interval, start):
    a, b, h0 = problem(8, np.complex128, seed)
    position = start + np.arange(8)[:, None] + np.array([0, 1])  # the two rows are due at different times
    bound = 0.3
    expected, clamped = clamped_loop(a, b, h0, position, interval, bound)
    assert clamped > 0
    h, h_last = jit_clamped(a, b, h0, position, interval, bound)
    np.testing.assert_allclose(h, expected, atol=TOLERANCE)
    np.testing.assert_allclose(h_last, expected[-1], atol=TOLERANCE)


def test_a_clamped_state_is_carried_on_clamped():
    a, b = np.ones((3, 1, 1), complex), np.zeros((3, 1, 1), complex)
    position = np.arange(3)[:, None]
    h, _ = clamped_recurrence(a, b, np.full((1, 1), 500j), position, 2, 100.0)
    np.testing.assert_allclose(h[:, 0, 0], [500j, 100j, 100j], rtol=1e-12)


def test_the_clamped_recurrence_joins_at_a_cut():
    a, b, h0 = problem(8, np.complex128)
    position = np.tile(np.arange(8)[:, None], (1, 2))
    whole, _ = jit_clamped(a, b, h0, position, 3, 0.3)
    first, carry = jit_clamped(a[:5], b[:5], h0, position[:5], 3, 0.3)
    second, _ = jit_clamped(a[5:], b[5:], carry, position[5:], 3, 0.3)
    np.testing.assert_array_equal(np.concatenate([first, second]), whole)


def test_the_gradient_of_the_clamped_recurrence_predicts_small_changes():
    a, b, h0 = problem(6, np.complex128)
    weights = problem(6, np.complex128, seed=3)[1]
    position = np.tile(np.arange(6)[:, None], (1, 2))
    loss = lambda h: np.sum(h * weights).real  # noqa: E731
    gradient = jax.jit(jax.grad(lambda b: jnp.sum(clamped_recurrence(a, b, h0, position, 2, 0.5)[0] * weights).real))(b)
    direction = problem(6, np.complex128, seed=4)[1]
    epsilon = 1e-6
    plus, minus = (loss(clamped_loop(a, b + s * epsilon * direction, h0, position, 2, 0.5)[0]) for s in (1, -1))
    np.testing.assert_allclose(np.sum(gradient * direction).real, (plus - minus) / (2 * epsilon), rtol=1e-6)
