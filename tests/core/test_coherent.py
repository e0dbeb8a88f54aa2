"""The coherent readout against the softmax it is, written out in float64, and its memory."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import array_sizes, complex_normal

from sem_jax.core import coherent

pytestmark = pytest.mark.usefixtures("quick_compilation")

VOCAB, DIM, SHAPE = 7, 3, (2, 5)


@pytest.fixture
def problem():
    rng = np.random.default_rng(0)
    psi, weight = complex_normal(rng, *SHAPE, DIM), complex_normal(rng, VOCAB, DIM)
    return psi, weight, rng.normal(size=VOCAB), rng.integers(0, VOCAB, SHAPE)


def plain(psi, weight, bias, targets):
    """(log P(target), log Z) by the definition, every logit at once."""
    values = np.einsum("...d,vd->...v", psi, weight).real + bias
    log_z = np.log(np.exp(values).sum(-1))
    return np.take_along_axis(values, targets[..., None], -1)[..., 0] - log_z, log_z


@pytest.mark.parametrize("entries", [1, 3 * VOCAB, 10**6], ids=["one token", "chunks with a rest", "all"])
def test_it_is_the_softmax(x64, problem, monkeypatch, entries):
    monkeypatch.setattr(coherent, "CHUNK_ENTRIES", entries)
    *inputs, targets = problem
    for found, expected in zip(
        coherent.target_log_prob(*map(jnp.asarray, inputs), targets), plain(*problem), strict=True
    ):
        np.testing.assert_allclose(found, expected, rtol=1e-13)


@pytest.mark.parametrize("entries", [1, 3 * VOCAB, 10**6], ids=["one token", "chunks with a rest", "all"])
def test_gradient_by_finite_differences(x64, problem, monkeypatch, entries):
    monkeypatch.setattr(coherent, "CHUNK_ENTRIES", entries)
    *inputs, targets = problem

    def value(psi, weight, bias):  # both results count, and not in proportion to each other
        log_prob, log_z = coherent.target_log_prob(psi, weight, bias, targets)
        return jnp.sum(jnp.sin(log_prob) + log_z**2)

    def by_hand(*inputs):
        log_prob, log_z = plain(*inputs, targets)
        return np.sum(np.sin(log_prob) + log_z**2)

    gradients = jax.grad(value, (0, 1, 2))(*map(jnp.asarray, inputs))
    rng = np.random.default_rng(1)
    for i, gradient in enumerate(gradients):
        direction = complex_normal(rng, *inputs[i].shape) if np.iscomplexobj(inputs[i]) else rng.normal(size=VOCAB)
        moved = [[x + sign * 1e-6 * direction if j == i else x for j, x in enumerate(inputs)] for sign in (1, -1)]
        slope = (by_hand(*moved[0]) - by_hand(*moved[1])) / 2e-6
        # jax.grad gives ∂/∂Re − i·∂/∂Im; the error of central differences is 1e-12 times a third derivative.
        np.testing.assert_allclose(np.sum(np.asarray(gradient) * direction).real, slope, rtol=1e-7)


def test_all_tokens_together_are_normalised(x64, problem):
    psi, weight, bias, _ = map(jnp.asarray, problem)
    log_probs, log_z = coherent.log_probs(psi, weight, bias)
    np.testing.assert_allclose(jnp.sum(jnp.exp(log_probs), axis=-1), 1, rtol=1e-14)
    np.testing.assert_allclose(log_z, plain(*problem)[1], rtol=1e-14)


def test_probability_is_the_overlap_of_coherent_states(x64):
    """P ∝ |⟨w|ψ⟩|² of two Glauber states, whose amplitudes in the number basis are e^{−|α|²/2}·α^n/sqrt(n!)."""
    psi, labels = 0.7 - 0.4j, np.array([0.3 + 0.2j, -0.5j, 1.1 + 0.1j])
    n = np.arange(40)
    root = np.sqrt(np.cumprod(np.maximum(n, 1.0)))

    def state(alpha):
        return np.exp(-(abs(alpha) ** 2) / 2) * alpha**n / root

    overlap = np.array([abs(np.vdot(state(w), state(psi))) ** 2 for w in labels])
    log_probs, _ = coherent.log_probs(
        jnp.asarray([psi]), jnp.asarray(2 * labels.conj()[:, None]), jnp.asarray(-(np.abs(labels) ** 2))
    )
    np.testing.assert_allclose(jnp.exp(log_probs), overlap / overlap.sum(), rtol=1e-13)


def test_extreme_logits_stay_finite():
    psi, weight = jnp.full((1, 1, 1), 1e3 + 0j), jnp.array([[1e3 + 0j], [-1e3 + 0j]])
    log_prob, log_z = coherent.target_log_prob(psi, weight, jnp.zeros(2), jnp.zeros((1, 1), int))
    assert float(log_prob[0, 0]) == 0.0
    assert float(log_z[0, 0]) == pytest.approx(1e6)


def test_no_array_over_all_tokens_and_the_vocabulary_exists():
    tokens, vocab, dim = 64, 4096, 8
    chunk = 8
    coherent_entries, coherent.CHUNK_ENTRIES = coherent.CHUNK_ENTRIES, chunk * vocab
    try:
        inputs = (
            jax.ShapeDtypeStruct((tokens, dim), jnp.complex64),
            jax.ShapeDtypeStruct((vocab, dim), jnp.complex64),
            jax.ShapeDtypeStruct((vocab,), jnp.float32),
            jax.ShapeDtypeStruct((tokens,), jnp.int32),
        )

        def loss(psi, weight, bias, targets):
            return -jnp.sum(coherent.target_log_prob(psi, weight, bias, targets)[0])

        largest = max(array_sizes(jax.make_jaxpr(jax.grad(loss, (0, 1, 2)))(*inputs)))
    finally:
        coherent.CHUNK_ENTRIES = coherent_entries
    assert largest <= 2 * vocab * dim  # the weights themselves; all logits would be 4 times as many
