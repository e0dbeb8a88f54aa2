from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import logsumexp, softmax

from sem_jax.core.sinkhorn import (
    causal_sinkhorn,
    initial_log_mass,
    kth_largest,
    row_softmax,
    sequence_sinkhorn,
    sparsify,
    transport_cost,
)

SEEDS = st.integers(0, 2**31 - 1)

pytestmark = pytest.mark.usefixtures("quick_compilation")
x64 = pytest.mark.usefixtures("x64")

jit_sequence = jax.jit(sequence_sinkhorn, static_argnums=(1, 2))
jit_causal = jax.jit(causal_sinkhorn)
jit_start = functools.partial(initial_log_mass, dtype=np.float64)


@given(seed=SEEDS)
@x64
def test_the_cost_is_the_squared_distance(seed):
    rng = np.random.default_rng(seed)
    points, codebook = rng.normal(size=(2, 3, 5)), rng.normal(size=(4, 5))
    expected = np.sum((points[:, :, None] - codebook) ** 2, axis=-1)
    np.testing.assert_allclose(jax.jit(transport_cost)(points, codebook), expected, atol=1e-13)


def test_the_cost_is_never_negative():
    points = 1e3 * np.random.default_rng(0).normal(size=(50, 5)).astype(np.float32)
    cost = np.asarray(transport_cost(points, points))  # cancellation leaves ±1e-7·1e6 on the diagonal
    assert cost.min() >= 0


@given(seed=SEEDS)
@x64
def test_row_softmax_is_the_softmax_of_each_row(seed):
    log_kernel = 10 * np.random.default_rng(seed).normal(size=(2, 3, 4))
    plan = np.asarray(jax.jit(row_softmax)(log_kernel))
    np.testing.assert_allclose(plan.sum(-1), 1, rtol=1e-14)
    np.testing.assert_allclose(plan, softmax(log_kernel, axis=-1), rtol=1e-13)


def numpy_sequence_sinkhorn(log_kernel, max_iter, tol):
    _, rows, columns = log_kernel.shape
    u, v = np.zeros((*log_kernel.shape[:2], 1)), np.zeros((log_kernel.shape[0], 1, columns))
    sweeps, before = 0, np.inf
    while sweeps < max_iter and np.max(np.abs(u - before)) >= tol:
        sweeps, before = sweeps + 1, u
        u = -np.log(rows) - logsumexp(log_kernel + v, axis=2, keepdims=True)
        v = -np.log(columns) - logsumexp(log_kernel + u, axis=1, keepdims=True)
    return np.exp(u + log_kernel + v), sweeps


@given(seed=SEEDS, tol=st.sampled_from([1e-2, 1e-4]))
@x64
def test_sweeps_stop_when_the_whole_batch_has_converged(seed, tol):
    rng = np.random.default_rng(seed)
    log_kernel = rng.normal(size=(2, 6, 4)) * np.array([0.1, 3.0])[:, None, None]
    expected, sweeps = numpy_sequence_sinkhorn(log_kernel, 40, tol)
    np.testing.assert_allclose(jit_sequence(log_kernel, 40, tol), expected, rtol=1e-12)
    if sweeps < 40:
        # One sweep more would have been seen.
        more, _ = numpy_sequence_sinkhorn(log_kernel, sweeps + 1, 0.0)
        assert not np.allclose(more, expected, rtol=1e-12, atol=0)


@given(seed=SEEDS)
@x64
def test_the_plan_of_a_sequence_has_its_marginals(seed):
    log_kernel = 2 * np.random.default_rng(seed).normal(size=(2, 6, 4))
    plan = np.asarray(jit_sequence(log_kernel, 2000, 1e-13))
    np.testing.assert_allclose(plan.sum(1), 1 / 4, rtol=1e-12)
    # max |Δu| < 1e-13 is the relative error of the rows, times the slow rest of a geometric series.
    np.testing.assert_allclose(plan.sum(2), 1 / 6, rtol=1e-9)


def numpy_causal_sinkhorn(log_kernel, sweeps, prior):
    """The definition for one document [S, M], with every row's potentials kept and all sums formed anew."""
    length, columns = log_kernel.shape
    potentials = np.zeros((length, sweeps + 1))  # u of row t before sweep i
    plan = np.zeros_like(log_kernel)
    for t in range(length):
        potentials[t, 0] = -logsumexp(log_kernel[t])
        for i in range(sweeps):
            column_sums = prior / columns + np.exp(log_kernel[: t + 1] + potentials[: t + 1, i, None]).sum(0)
            v = np.log((prior + t + 1) / columns / column_sums)
            potentials[t, i + 1] = -logsumexp(log_kernel[t] + v)
        plan[t] = np.exp(log_kernel[t] + v + potentials[t, sweeps])
    return plan


@given(seed=SEEDS, prior=st.sampled_from([0.5, 4.0, 128.0]), scale=st.floats(0.1, 20))
@x64
def test_the_causal_plan_is_its_definition(seed, prior, scale):
    log_kernel = -scale * np.random.default_rng(seed).uniform(size=(2, 7, 4))
    plan, _ = jit_causal(log_kernel, np.broadcast_to(jit_start(3, 4, prior), (3, 2, 4)), positions(7), prior)
    for row in range(2):
        np.testing.assert_allclose(plan[row], numpy_causal_sinkhorn(log_kernel[row], 3, prior), rtol=1e-11)
    np.testing.assert_allclose(plan.sum(-1), 1, rtol=1e-13)


def positions(length, resets=()):
    """Positions of two equal rows with new documents at `resets`."""
    row = np.arange(length, dtype=np.int32)
    for start in resets:
        row[start:] = np.arange(length - start)
    return np.stack([row, row])


@given(seed=SEEDS, reset=st.integers(1, 6))
@x64
def test_a_new_document_starts_from_nothing(seed, reset):
    log_kernel = 3 * np.random.default_rng(seed).normal(size=(2, 7, 4))
    start = np.broadcast_to(jit_start(3, 4, 4.0), (3, 2, 4))
    plan, _ = jit_causal(log_kernel, start, positions(7, [reset]), 4.0)
    # The same document moved to the front; what follows it cannot matter.
    moved, _ = jit_causal(np.roll(log_kernel, -reset, axis=1), start, positions(7), 4.0)
    np.testing.assert_array_equal(plan[:, reset:], moved[:, : 7 - reset])


@given(seed=SEEDS)
@x64
def test_column_sums_carry_the_past(seed):
    log_kernel = 3 * np.random.default_rng(seed).normal(size=(2, 7, 4))
    start = np.broadcast_to(jit_start(3, 4, 4.0), (3, 2, 4))
    whole, mass = jit_causal(log_kernel, start, positions(7), 4.0)
    first, carry = jit_causal(log_kernel[:, :4], start, positions(7)[:, :4], 4.0)
    second, end = jit_causal(log_kernel[:, 4:], carry, positions(7)[:, 4:], 4.0)
    np.testing.assert_allclose(np.concatenate([first, second], axis=1), whole, rtol=1e-13)
    np.testing.assert_allclose(end, mass, rtol=1e-13, atol=1e-14)


@x64
def test_the_prior_leads_from_even_rows_to_the_row_softmax():
    log_kernel = 2 * np.random.default_rng(0).normal(size=(2, 7, 4))

    def plan(prior):
        return np.asarray(
            jit_causal(log_kernel, np.broadcast_to(jit_start(3, 4, prior), (3, 2, 4)), positions(7), prior)[0]
        )

    # 7 rows against 1e9 virtual ones move log v by 1e-8.
    np.testing.assert_allclose(plan(1e9), softmax(log_kernel, axis=-1), rtol=1e-7)
    np.testing.assert_allclose(plan(0.0)[:, 0], 1 / 4, rtol=1e-12)


@x64
def test_the_causal_plan_uses_columns_more_evenly_than_the_row_softmax():
    rng = np.random.default_rng(0)
    log_kernel = rng.normal(size=(2, 200, 4)) + np.array([4, 0, 0, -4])

    def imbalance(plan):
        return np.abs(np.mean(plan, axis=(0, 1)) - 1 / 4).max()

    def causal(prior):
        start = np.broadcast_to(jit_start(3, 4, prior), (3, 2, 4))
        return np.asarray(jit_causal(log_kernel, start, positions(200), prior)[0])

    unbalanced = imbalance(softmax(log_kernel, axis=-1))
    assert imbalance(causal(0.0)) < 0.1 * unbalanced  # the first rows cannot know what is to come
    assert imbalance(causal(0.0)) < imbalance(causal(4.0)) < imbalance(causal(64.0)) < unbalanced


@x64
def test_the_gradient_of_the_causal_plan_predicts_small_changes():
    rng = np.random.default_rng(0)
    log_kernel, weights, direction = (rng.normal(size=(2, 5, 4)) for _ in range(3))
    start = np.broadcast_to(jit_start(2, 4, 4.0), (2, 2, 4))
    gradient = jax.jit(jax.grad(lambda k: jnp.sum(weights * causal_sinkhorn(k, start, positions(5), 4.0)[0])))(
        log_kernel
    )
    epsilon = 1e-5
    plus, minus = (
        sum(
            np.sum(weights[row] * numpy_causal_sinkhorn((log_kernel + sign * epsilon * direction)[row], 2, 4.0))
            for row in (0, 1)
        )
        for sign in (1, -1)
    )
    # Central differences: ε² times a third derivative below 1e2, and rounding 1e-15/ε.
    np.testing.assert_allclose(np.sum(gradient * direction), (plus - minus) / (2 * epsilon), atol=1e-8)


VALUES = np.array([0.0, 0.0, 1e-37, 1e-7, 0.25, 0.5, 0.5, 1.0, 3.0, 1e30])

jit_kth = jax.jit(jax.vmap(kth_largest, in_axes=(0, 0)))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@given(seed=SEEDS, ties=st.booleans())
@x64
def test_the_kth_largest_is_that_of_a_sort(dtype, seed, ties):
    rng = np.random.default_rng(seed)
    x = (rng.choice(VALUES, size=(3, 8)) if ties else rng.uniform(size=(3, 8))).astype(dtype)
    every_k = np.arange(1, 9)
    actual = jit_kth(np.broadcast_to(x, (8, 3, 8)), every_k)[..., 0]
    np.testing.assert_array_equal(actual, np.sort(x, axis=-1)[:, ::-1].T)


@x64
def test_the_kth_largest_shares_its_gradient_among_ties():
    x = jnp.array([0.1, 0.5, 0.5, 0.2, 0.9])
    gradient = jax.grad(lambda x: jnp.sum(kth_largest(x, 2)))(x)
    np.testing.assert_allclose(gradient, [0, 0.5, 0.5, 0, 0])
    np.testing.assert_allclose(jax.grad(lambda x: jnp.sum(kth_largest(x, 4)))(x), [0, 0, 0, 1, 0])


@given(seed=SEEDS, num_kept=st.sampled_from([1, 3, 6]))
@x64
def test_sparsify_moves_the_largest_towards_zero_and_the_rest_to_zero(seed, num_kept):
    x = np.random.default_rng(seed).normal(size=(4, 6))
    y = np.asarray(jit_sparsify(x, num_kept))
    threshold = np.sort(np.abs(x), axis=-1)[:, [-num_kept]]
    kept = np.abs(x) > threshold
    np.testing.assert_array_equal(y != 0, kept)
    assert np.all(kept.sum(-1) <= num_kept)
    np.testing.assert_allclose(y[kept], (x - np.sign(x) * threshold)[kept], rtol=1e-15)


jit_sparsify = jax.jit(sparsify, static_argnums=1)


@x64
def test_the_gradient_of_sparsify_is_that_of_a_moving_threshold():
    x, weights = np.array([0.9, -0.7, 0.2, 0.4]), np.array([1.0, 10.0, 100.0, 1000.0])
    gradient = jax.jit(jax.grad(lambda x: jnp.sum(weights * sparsify(x, 3))))(x)
    # Kept entries move by one; the threshold, 0.4, moves them all the other way: −1·1 + 10·1.
    np.testing.assert_allclose(gradient, [1, 10, 0, -1 + 10])
