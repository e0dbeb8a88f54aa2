"""The selective state space: matrix products against the recurrence written out."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import array_sizes, complex_normal

from sem_jax.core.duality import selective_state_space

BATCH, LENGTH, HEADS, CHANNELS, STATES = 2, 23, 3, 4, 5
pytestmark = pytest.mark.usefixtures("quick_compilation")

NAMES = ("q", "k", "x", "dt", "omega", "decay", "phase", "h0")


@functools.cache
def problem(resets: str):
    rng = np.random.default_rng(0)
    tokens = (BATCH, LENGTH)
    inputs = (
        complex_normal(rng, *tokens, STATES),
        complex_normal(rng, *tokens, STATES),
        complex_normal(rng, *tokens, HEADS, CHANNELS),
        rng.uniform(0.01, 2, (*tokens, HEADS)),
        rng.normal(size=(*tokens, HEADS)),
        rng.uniform(0.01, 1, HEADS),
        rng.normal(size=(HEADS, STATES)),
        complex_normal(rng, BATCH, HEADS, STATES, CHANNELS),
    )
    starts = np.zeros(tokens, bool)
    if resets == "anywhere":
        starts = rng.random(tokens) < 0.2
    if resets == "at the edges of chunks":
        starts[0, [0, 7, 14]] = starts[1, [6, 13, 22]] = True
    return inputs, starts


def written_out(q, k, x, dt, omega, decay, phase, h0, starts):
    """The definition, one token after the other, in numpy."""
    h, y = np.array(h0), np.zeros(x.shape, complex)
    for b, t in np.ndindex(starts.shape):
        if starts[b, t]:
            h[b] = 0
        for i in range(x.shape[2]):
            alpha = np.exp(-dt[b, t, i] * decay[i] + 1j * omega[b, t, i] * phase[i])
            h[b, i] = alpha[:, None] * h[b, i] + np.outer(k[b, t], dt[b, t, i] * x[b, t, i])
            y[b, t, i] = q[b, t].conj() @ h[b, i] / len(q[b, t])
    return y, h


@functools.cache
def gradient_of(method: str, chunk: int):
    """Of a sum in which every output counts, for inputs and starts; with the outputs."""
    rng = np.random.default_rng(1)
    weights = complex_normal(rng, BATCH, LENGTH, HEADS, CHANNELS), complex_normal(rng, BATCH, HEADS, STATES, CHANNELS)

    def total(*inputs):
        outputs = selective_state_space(*inputs, method, chunk)
        return sum(jnp.sum((w * out).real) for w, out in zip(weights, outputs, strict=True)), outputs

    return jax.jit(jax.value_and_grad(total, tuple(range(8)), has_aux=True))


@functools.cache
def results(resets: str, method: str, chunk: int):
    """(outputs, gradients) of one form."""
    inputs, starts = problem(resets)
    (_, outputs), gradients = gradient_of(method, chunk)(*map(jnp.asarray, (*inputs, starts)))
    return outputs, gradients


@pytest.mark.parametrize("resets", ["none", "anywhere", "at the edges of chunks"])
@pytest.mark.parametrize(("method", "chunk"), [("sequential", 1), ("chunked", 1), ("chunked", 7), ("chunked", LENGTH)])
def test_values_are_those_of_the_definition(x64, resets, method, chunk):
    inputs, starts = problem(resets)
    for found, expected in zip(results(resets, method, chunk)[0], written_out(*inputs, starts), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-13)  # entries of order one, sums of at most 23 terms


@pytest.mark.parametrize("resets", ["none", "anywhere", "at the edges of chunks"])
@pytest.mark.parametrize(("method", "chunk"), [("associative", 1), ("chunked", 1), ("chunked", 7), ("chunked", 64)])
def test_gradients_are_those_of_the_recurrence(x64, resets, method, chunk):
    ours, expected = results(resets, method, chunk)[1], results(resets, "sequential", 1)[1]
    for name, found, reference in zip(NAMES, ours, expected, strict=True):
        scale = np.max(np.abs(reference))
        np.testing.assert_allclose(found, reference, atol=1e-13 * max(scale, 1), err_msg=name)


@pytest.mark.parametrize("method", ["sequential", "chunked"])
def test_two_halves_are_the_whole(x64, method):
    (*tokens, decay, phase, h0), starts = problem("anywhere")
    whole, last = selective_state_space(*tokens, decay, phase, h0, starts, method, 7)
    first, h = selective_state_space(*(a[:, :9] for a in tokens), decay, phase, h0, starts[:, :9], method, 7)
    second, h = selective_state_space(*(a[:, 9:] for a in tokens), decay, phase, h, starts[:, 9:], method, 7)
    np.testing.assert_allclose(jnp.concatenate([first, second], axis=1), whole, atol=1e-13)
    np.testing.assert_allclose(h, last, atol=1e-13)


@pytest.mark.parametrize(("method", "chunk"), [("sequential", 1), ("chunked", 7), ("chunked", LENGTH)])
def test_without_a_state_it_starts_from_zero(x64, method, chunk):
    (*inputs, h0), starts = problem("anywhere")
    expected = written_out(*inputs, np.zeros_like(h0), starts)
    found = selective_state_space(*map(jnp.asarray, inputs), None, starts, method, chunk)
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-13)  # as above


def test_later_tokens_and_batch_mates_do_not_matter(x64):
    (q, k, x, dt, omega, *rest), starts = problem("anywhere")
    before, _ = selective_state_space(q, k, x, dt, omega, *rest, starts, "chunked", 7)
    change = np.zeros((BATCH, LENGTH), bool)
    change[0, 12:] = True
    swap = [np.where(change.reshape(BATCH, LENGTH, *[1] * (a.ndim - 2)), 2 * a + 1, a) for a in (q, k, x, dt, omega)]
    after, _ = selective_state_space(*swap, *rest, starts, "chunked", 7)
    np.testing.assert_array_equal(after[~change], before[~change])
    assert np.all(np.abs(after[change] - before[change]).max(axis=(1, 2)) > 0)


@pytest.mark.parametrize("chunk", [7, 64])
def test_extreme_step_sizes_overflow_nowhere(chunk):
    (q, k, x, dt, omega, *rest), starts = problem("none")
    single = [
        np.asarray(a, np.complex64 if np.iscomplexobj(a) else np.float32)
        for a in (q, k, x, 1e4 * dt, 1e4 * omega, *rest)
    ]

    def total(*inputs):
        y, h = selective_state_space(*inputs, starts, "chunked", chunk)
        return jnp.sum(jnp.abs(y) ** 2) + jnp.sum(jnp.abs(h) ** 2)

    value, gradients = jax.jit(jax.value_and_grad(total, tuple(range(8))))(*single)
    assert np.isfinite(value)
    assert all(np.isfinite(g).all() for g in gradients)


def test_no_array_holds_every_state_or_all_scores():
    length, states, channels, chunk = 1024, 16, 8, 64
    tokens = (1, length)
    shapes = [(*tokens, states)] * 2 + [(*tokens, 1, channels)]
    inputs = [jax.ShapeDtypeStruct(s, jnp.complex64) for s in shapes]
    inputs += [jax.ShapeDtypeStruct(s, jnp.float32) for s in [(*tokens, 1), (*tokens, 1), (1,), (1, states)]]
    inputs += [jax.ShapeDtypeStruct((1, 1, states, channels), jnp.complex64)]

    def total(*inputs):
        return jnp.sum(jnp.abs(selective_state_space(*inputs, np.zeros(tokens, bool), "chunked", chunk)[0]) ** 2)

    largest = max(array_sizes(jax.make_jaxpr(jax.grad(total, tuple(range(8))))(*inputs)))
    assert largest <= 2 * length * states  # queries with their turn; scores would be length², states length·N·P


def test_an_unknown_method_is_refused():
    inputs, starts = problem("none")
    with pytest.raises(ValueError, match="'parallel' is not one of"):
        selective_state_space(*inputs, starts, "parallel")
