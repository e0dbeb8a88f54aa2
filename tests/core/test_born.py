from __future__ import annotations

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import logsumexp

from sem_jax.core import born
from sem_jax.core.born import gram_matrix, log_probs, partition, reference_logits, target_log_prob

SEEDS = st.integers(0, 2**31 - 1)
VOCAB, DIM = 9, 4
FLOOR = 1e-6

pytestmark = pytest.mark.usefixtures("quick_compilation")
x64 = pytest.mark.usefixtures("x64")

jit_target = jax.jit(target_log_prob, static_argnums=4)
jit_all = jax.jit(log_probs, static_argnums=3)
jit_reference = jax.jit(reference_logits)


def problem(seed, bias_scale=1.0):
    rng = np.random.default_rng(seed)
    psi = rng.normal(size=(2, 3, DIM)) + 1j * rng.normal(size=(2, 3, DIM))
    weight = rng.normal(size=(VOCAB, DIM)) + 1j * rng.normal(size=(VOCAB, DIM))
    return psi, weight, bias_scale * rng.normal(size=VOCAB), rng.integers(0, VOCAB, size=(2, 3))


def numpy_log_probs(psi, weight, bias, floor):
    """Born's rule in log space over the whole vocabulary, and log Z."""
    log_weights = bias + 2 * np.log(np.abs(psi @ weight.T))
    log_z = logsumexp(log_weights, axis=-1, keepdims=True)
    return np.log((np.exp(log_weights - log_z) + floor / len(bias)) / (1 + floor)), log_z[..., 0]


def pick(log_p, targets):
    return np.take_along_axis(log_p, targets[..., None], axis=-1)[..., 0]


# Z is a sum of D² products of both signs, all below Z·D: relative rounding below D²·1e-15; the floor keeps P above
# 1e-7, so where P nearly vanishes it is the absolute error of P, 1e-14, that counts: 1e-7 of log P at the very worst,
# 1e-10 where P > 1e-4.
@given(seed=SEEDS, bias_scale=st.sampled_from([0.0, 1.0, 5.0, 300.0]))
@x64
def test_the_likelihood_without_the_vocabulary_is_the_one_over_it(seed, bias_scale):
    psi, weight, bias, targets = problem(seed, bias_scale)
    log_p, log_z = jit_target(psi, weight, bias, targets, FLOOR)
    expected, expected_log_z = numpy_log_probs(psi, weight, bias, FLOOR)
    np.testing.assert_allclose(np.exp(log_p), np.exp(pick(expected, targets)), atol=1e-13)
    np.testing.assert_allclose(log_p, pick(expected, targets), atol=1e-7)
    np.testing.assert_allclose(log_z, expected_log_z, atol=1e-12)


@given(seed=SEEDS, bias_scale=st.sampled_from([1.0, 300.0]))
@x64
def test_all_probabilities_are_borns_rule_and_sum_to_one(seed, bias_scale):
    psi, weight, bias, _ = problem(seed, bias_scale)
    log_p, log_z = jit_all(psi, weight, bias, FLOOR)
    expected, expected_log_z = numpy_log_probs(psi, weight, bias, FLOOR)
    np.testing.assert_allclose(log_p, expected, atol=1e-7)
    np.testing.assert_allclose(log_z, expected_log_z, atol=1e-12)
    np.testing.assert_allclose(np.exp(log_p).sum(-1), 1, rtol=1e-13)


def full_vocabulary_loss(psi, weight, bias, targets):
    """Σ of log P(target) + log²Z, over the vocabulary and in native complex arithmetic."""
    weights = jnp.exp(bias - bias.max()) * jnp.abs(jnp.einsum("bsd,vd->bsv", psi, weight)) ** 2
    z = weights.sum(-1)
    p = (jnp.take_along_axis(weights, targets[..., None], axis=-1)[..., 0] / z + FLOOR / VOCAB) / (1 + FLOOR)
    return jnp.sum(jnp.log(p) + (jnp.log(z) + bias.max()) ** 2)


@functools.cache
def both_gradients():
    def loss(psi, weight, bias, targets):
        log_p, log_z = target_log_prob(psi, weight, bias, targets, FLOOR)
        return jnp.sum(log_p + log_z**2)

    return [jax.jit(jax.grad(f, argnums=(0, 1, 2))) for f in (loss, full_vocabulary_loss)]


@given(seed=SEEDS, bias_scale=st.sampled_from([0.0, 1.0, 20.0]))
@x64
def test_the_gradient_without_the_vocabulary_is_the_one_over_it(seed, bias_scale):
    psi, weight, bias, targets = problem(seed, bias_scale)
    actual, expected = (gradient(psi, weight, bias, targets) for gradient in both_gradients())
    for a, e in zip(actual, expected, strict=True):
        # The worst factor is 1/P <= V/floor = 1e7 on the rounding of one share, 1e-15.
        np.testing.assert_allclose(a, e, atol=1e-8 * max(1, np.abs(e).max()))


@pytest.mark.parametrize(("chunk_rows", "chunks"), [(4, 3), (2, 9), (9, 1), (100, 1)])
@x64
def test_rows_worked_on_in_chunks_give_the_same_value_and_gradient(chunk_rows, chunks, monkeypatch):
    monkeypatch.setattr(born, "CHUNK_ROWS", chunk_rows)
    psi, weight, bias, targets = problem(0)
    assert born._in_row_chunks(jnp.asarray(weight)).shape == (chunks, VOCAB // chunks, DIM)

    def loss(psi, weight, bias):
        log_p, log_z = target_log_prob(psi, weight, bias, targets, FLOOR)
        return jnp.sum(log_p + log_z**2)

    actual = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)))(psi, weight, bias)
    expected = jax.value_and_grad(full_vocabulary_loss, argnums=(0, 1, 2))(
        *map(jnp.asarray, (psi, weight, bias)), targets
    )
    # The error estimate of the test above; here no P is below 1e-4.
    chex.assert_trees_all_close(actual, expected, rtol=1e-10, atol=1e-10)


def test_a_vocabulary_without_a_fitting_divisor_is_one_chunk(monkeypatch):
    monkeypatch.setattr(born, "CHUNK_ROWS", 4)
    assert born._in_row_chunks(jnp.zeros((11, 2))).shape == (1, 11, 2)


@pytest.mark.slow
@x64
def test_the_gradient_can_be_differentiated_again():
    psi, weight, bias, targets = map(jnp.asarray, problem(0))

    def slope(loss, eps):
        at = lambda w: loss(psi, weight * w, bias)  # noqa: E731
        return jax.grad(lambda e: jax.grad(at)(1 + e))(eps)

    def ours(psi, weight, bias):
        log_p, log_z = target_log_prob(psi, weight, bias, targets, FLOOR)
        return jnp.sum(log_p + log_z**2)

    theirs = lambda *arguments: full_vocabulary_loss(*arguments, targets)  # noqa: E731
    np.testing.assert_allclose(slope(ours, 0.1), slope(theirs, 0.1), rtol=1e-8)


@x64
def test_the_gradient_with_respect_to_the_bias_is_what_was_seen_minus_what_was_expected():
    psi, weight, bias, targets = problem(0)
    loss = lambda bias, weight: jnp.sum(target_log_prob(psi, weight, bias, targets, 0.0)[0])  # noqa: E731
    gradient = jax.jit(jax.grad(loss))(bias, weight)
    expected, _ = numpy_log_probs(psi, weight, bias, 0.0)
    seen = np.bincount(targets.ravel(), minlength=VOCAB)
    np.testing.assert_allclose(gradient, seen - np.exp(expected).sum((0, 1)), atol=1e-12)


def test_single_precision_agrees_to_single_precision():
    psi, weight, bias, targets = problem(0)
    log_p, _ = jit_target(
        psi.astype(np.complex64), weight.astype(np.complex64), bias.astype(np.float32), targets, FLOOR
    )
    expected, _ = numpy_log_probs(psi, weight, bias, FLOOR)
    # Relative error of P: D² = 16 products of 6e-8, and of the amplitude.
    np.testing.assert_allclose(np.exp(log_p), np.exp(pick(expected, targets)), rtol=1e-5, atol=1e-6)


@x64
def test_the_gram_matrix_is_the_weighted_product_hermitian_and_positive():
    psi, weight, bias, _ = problem(0)
    gram = jax.jit(gram_matrix)(weight, bias)
    matrix = np.asarray(gram.matrix) * np.exp(gram.log_scale)
    np.testing.assert_allclose(matrix, weight.conj().T @ np.diag(np.exp(bias)) @ weight, rtol=1e-12)
    np.testing.assert_array_equal(matrix, matrix.conj().T)
    assert np.linalg.eigvalsh(matrix).min() > 0
    expected = np.sum(np.exp(bias) * np.abs(psi @ weight.T) ** 2, axis=-1)
    np.testing.assert_allclose(partition(psi, gram) * np.exp(gram.log_scale), expected, rtol=1e-12)


def test_a_vanishing_amplitude_has_the_floor_as_probability_and_a_finite_gradient():
    psi = np.array([1.0, 0.0], np.complex64)
    weight = np.array([[0, 1], [1, 0], [1, 1j]], np.complex64)  # the first is orthogonal to ψ
    bias = np.zeros(3, np.float32)

    def loss(psi, weight, bias):
        return target_log_prob(psi, weight, bias, jnp.int32(0), FLOOR)[0]

    value, gradients = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)))(psi, weight, bias)
    np.testing.assert_allclose(value, np.log(FLOOR / 3 / (1 + FLOOR)), rtol=1e-6)
    chex.assert_tree_all_finite(gradients)
    np.testing.assert_allclose(jit_all(psi, weight, bias, FLOOR)[0][0], value, rtol=1e-6)


def test_a_zero_wave_has_finite_values_and_gradients():
    _, weight, bias, _ = map(jnp.asarray, problem(0))
    loss = lambda psi: jnp.sum(jnp.stack(target_log_prob(psi, weight, bias, 1, FLOOR)))  # noqa: E731
    value, gradient = jax.jit(jax.value_and_grad(loss))(np.zeros(DIM, np.complex64))
    chex.assert_tree_all_finite((value, gradient))


@given(seed=SEEDS, log_scale=st.floats(-4, 4), phase=st.floats(0, 6))
@x64
def test_scale_and_phase_of_the_wave_do_not_matter(seed, log_scale, phase):
    psi, weight, bias, targets = problem(seed)
    factor = 10**log_scale * np.exp(1j * phase)
    log_p, log_z = jit_target(psi, weight, bias, targets, FLOOR)
    scaled_log_p, scaled_log_z = jit_target(factor * psi, weight, bias, targets, FLOOR)
    np.testing.assert_allclose(np.exp(scaled_log_p), np.exp(log_p), atol=1e-13)
    np.testing.assert_allclose(scaled_log_z, log_z + 2 * np.log(abs(factor)), atol=1e-11)


@x64
def test_the_floor_is_a_share_of_the_uniform_distribution():
    psi, weight, bias, _ = problem(0)
    pure, mixed = (np.exp(jit_all(psi, weight, bias, floor)[0]) for floor in (0.0, 0.25))
    np.testing.assert_allclose(mixed, (pure + 0.25 / VOCAB) / 1.25, rtol=1e-12)


def test_a_certain_target_has_probability_one_and_no_more():
    psi = np.array([0.3 + 0.1j, -0.7], np.complex64)
    weight = np.array([[1.3, 0.2j], [0, 0], [0, 0]], np.complex64)
    log_p, _ = jit_target(psi, weight, np.zeros(3, np.float32), 0, 0.0)
    assert -1e-6 < log_p <= 0


@x64
def test_reference_logits_are_their_definition():
    psi, weight, bias, _ = problem(0)
    logits, amplitude_sq = jit_reference(psi, weight, bias)
    expected = np.abs(psi @ weight.T) ** 2
    np.testing.assert_allclose(amplitude_sq, expected, rtol=1e-12)
    floor = 1e-6 * expected.mean(-1, keepdims=True) + 1e-30
    np.testing.assert_allclose(logits, np.log(expected + floor) + bias, rtol=1e-12, atol=1e-12)


def test_reference_logits_are_finite_without_any_amplitude():
    _, weight, bias, _ = problem(0)
    logits, _ = jit_reference(np.zeros(DIM, np.complex64), weight.astype(np.complex64), bias.astype(np.float32))
    np.testing.assert_allclose(logits, np.log(1e-30) + bias, rtol=1e-5)
