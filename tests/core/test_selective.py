from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small import complex_normal

from sem_jax.core.causal_conv import causal_conv
from sem_jax.core.scan import METHODS
from sem_jax.core.selective import scaled_by_group, selective_recurrence

pytestmark = pytest.mark.usefixtures("x64", "quick_compilation")

SEEDS = st.integers(0, 2**31 - 1)
LENGTH, BATCH, GROUPS, STATES = 7, 2, 3, 4
WIDTH, DIM = 4, 5


def recurrence_problem(seed):
    """(δ, ω, λ, φ, b, h0) and where documents start: somewhere in the middle, and everywhere else but there."""
    rng = np.random.default_rng(seed)
    dt, omega = rng.uniform(0.1, 1, size=(2, LENGTH, BATCH, GROUPS))
    decay, phase = rng.uniform(0, 1, size=(GROUPS, STATES)), rng.normal(size=(GROUPS, STATES))
    inputs = complex_normal(rng, LENGTH, BATCH, GROUPS, STATES)
    starts = rng.random((LENGTH, BATCH)) < 0.3
    return (dt, omega, decay, phase, inputs, complex_normal(rng, BATCH, GROUPS, STATES)), starts


def unrolled(dt, omega, decay, phase, inputs, h0, starts):
    """The recurrence in numbers, one step after another, differentiated by JAX."""
    h, states = h0, []
    for t in range(LENGTH):
        a = jnp.exp(dt[t][..., None] * (-decay) + 1j * omega[t][..., None] * phase)
        h = jnp.where(starts[t][:, None, None], 0, a) * h + inputs[t]
        states.append(h)
    return jnp.stack(states)


@functools.cache
def compiled(function):
    """Value and gradients of a real sum in which every entry counts by a weight of its own; compiled once."""

    def loss(arguments, weights, fixed):
        return jnp.sum((weights * function(*arguments, *fixed)).real)

    return jax.jit(jax.value_and_grad(loss))


def gradients(function, arguments, weights, *fixed):
    return compiled(function)(tuple(map(jnp.asarray, arguments)), weights, fixed)


@functools.cache
def recurrence(method):
    return lambda *arguments: selective_recurrence(*arguments, method)


def broadcast_product(scale, x):
    return scale[..., None] * x


def assert_close(actual, expected):
    # Sums of some hundred terms of order one in double precision.
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, e, rtol=0, atol=1e-12 * max(1, np.abs(e).max()))


@pytest.mark.parametrize("method", METHODS)
@given(seed=SEEDS)
def test_the_selective_recurrence_and_its_gradient_are_those_of_its_steps(method, seed):
    arguments, starts = recurrence_problem(seed)
    weights = complex_normal(np.random.default_rng(seed + 1), LENGTH, BATCH, GROUPS, STATES)
    expected = gradients(unrolled, arguments, weights, starts)
    assert_close(gradients(recurrence(method), arguments, weights, starts), expected)


@given(seed=SEEDS)
def test_a_scale_by_group_multiplies_every_state_of_it(seed):
    rng = np.random.default_rng(seed)
    arguments = rng.normal(size=(LENGTH, BATCH, GROUPS)), complex_normal(rng, LENGTH, BATCH, GROUPS, STATES)
    weights = complex_normal(rng, LENGTH, BATCH, GROUPS, STATES)
    expected = gradients(broadcast_product, arguments, weights)
    assert_close(gradients(scaled_by_group, arguments, weights), expected)


def taps_one_by_one(extended, kernel, bias, position):
    """Each output from its K inputs, in complex arithmetic: a real 2x2 matrix on (re, im) is p·x + q·conj(x)."""
    p = (kernel[..., 0, 0] + kernel[..., 1, 1] + 1j * (kernel[..., 1, 0] - kernel[..., 0, 1])) / 2
    q = (kernel[..., 0, 0] - kernel[..., 1, 1] + 1j * (kernel[..., 1, 0] + kernel[..., 0, 1])) / 2
    outputs = []
    for t in range(LENGTH):
        y = bias[:, 0] + 1j * bias[:, 1]
        for tap in range(WIDTH):
            inside = (position[:, t] >= WIDTH - 1 - tap)[:, None]
            x = extended[:, t + tap]
            y = y + jnp.where(inside, p[tap] * x + q[tap] * jnp.conj(x), 0)
        outputs.append(y)
    return jnp.stack(outputs, axis=1)


@given(seed=SEEDS)
def test_the_convolution_and_its_gradient_are_those_of_its_taps(seed):
    rng = np.random.default_rng(seed)
    extended = complex_normal(rng, BATCH, WIDTH - 1 + LENGTH, DIM)
    arguments = extended, rng.normal(size=(WIDTH, DIM, 2, 2)), rng.normal(size=(DIM, 2))
    position = rng.integers(0, 6, size=(BATCH, LENGTH))  # any: each output is masked by its own
    weights = complex_normal(rng, BATCH, LENGTH, DIM)
    expected = gradients(taps_one_by_one, arguments, weights, position)
    assert_close(gradients(causal_conv, arguments, weights, position), expected)
