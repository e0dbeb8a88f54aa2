import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sem_jax.optim import bias_corrected_second_moment, scale_by_complex_adam

B1, B2, EPS = 0.9, 0.999, 1e-8


def gradients(shape, dtype, steps=20, seed=0):
    """[steps, *shape] over several orders of magnitude, with some entries that stay exactly zero."""
    rng = np.random.default_rng(seed)
    g = rng.normal(size=(steps, *shape)) * 10.0 ** rng.uniform(-6, 2, size=(steps, *shape))
    if np.issubdtype(dtype, np.complexfloating):
        g = g * np.exp(2j * np.pi * rng.random(g.shape))
    g[:, 0] = 0
    return g.astype(dtype)


def run(optimizer, grads, state):
    def step(state, g):
        updates, state = optimizer.update(g, state)
        return state, updates

    return jax.jit(lambda: jax.lax.scan(step, state, grads))()


@pytest.mark.parametrize("jit", [False, True])
def test_real_trees_give_the_bits_of_optax(jit):
    params = {"w": jnp.ones((3, 2)), "b": jnp.ones(4, jnp.bfloat16)}
    ours, theirs = scale_by_complex_adam(B1, B2, EPS), optax.scale_by_adam(B1, B2, EPS)
    ours_update, theirs_update = (jax.jit(o.update) if jit else o.update for o in (ours, theirs))
    our_state, their_state = ours.init(params), theirs.init(params)
    chex.assert_trees_all_equal(our_state, their_state)
    for w, b in zip(gradients((3, 2), np.float32), gradients((4,), np.float32), strict=True):
        grads = {"w": jnp.asarray(w), "b": jnp.asarray(b, jnp.bfloat16)}
        our_updates, our_state = ours_update(grads, our_state)
        their_updates, their_state = theirs_update(grads, their_state)
        chex.assert_trees_all_equal((our_updates, our_state), (their_updates, their_state))


def test_complex_entries_follow_the_specification():
    grads = gradients((5, 3), np.complex128)
    with jax.enable_x64(True):
        optimizer = scale_by_complex_adam(B1, B2, EPS)
        state, updates = run(optimizer, jnp.asarray(grads), optimizer.init(jnp.asarray(grads[0])))
    m, v = np.zeros((5, 3), complex), np.zeros((5, 3))
    for t, g in enumerate(grads, start=1):
        m = B1 * m + (1 - B1) * g
        v = B2 * v + (1 - B2) * (g.real**2 + g.imag**2)
        expected = m / (1 - B1**t) / (np.sqrt(v / (1 - B2**t)) + EPS)
        # m may cancel from terms as large as its own past, so the error is relative to the step's largest value: 1.
        np.testing.assert_allclose(updates[t - 1], expected, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(state.nu, v, rtol=1e-13)


def test_the_second_moment_is_real_and_stays_so():
    optimizer = scale_by_complex_adam()
    params = {"z": jnp.ones((2, 3), jnp.complex64), "x": jnp.ones(4)}
    state = optimizer.init(params)
    updates, new_state = jax.jit(optimizer.update)(params, state)
    chex.assert_trees_all_equal_shapes_and_dtypes(new_state, state)
    chex.assert_trees_all_equal_shapes_and_dtypes(updates, params)
    assert state.nu["z"].dtype == jnp.float32
    assert state.mu["z"].dtype == jnp.complex64


@settings(max_examples=20, deadline=None)
@given(angle=st.floats(-np.pi, np.pi), seed=st.integers(0, 100))
def test_a_rotated_gradient_gives_the_rotated_update(angle, seed):
    grads, turn = gradients((4,), np.complex64, steps=5, seed=seed), np.complex64(np.exp(1j * angle))
    optimizer = scale_by_complex_adam(B1, B2, EPS)
    state, turned_state = optimizer.init(jnp.asarray(grads[0])), optimizer.init(jnp.asarray(grads[0]))
    for g in grads:
        updates, state = optimizer.update(jnp.asarray(g), state)
        turned, turned_state = optimizer.update(jnp.asarray(g * turn), turned_state)
    # |updates| is at most about 1, and each of some ten roundings is half of 1.2e-7 at most.
    np.testing.assert_allclose(turned, updates * turn, atol=2e-6)


def test_bias_correction_recovers_a_constant_second_moment():
    optimizer = scale_by_complex_adam(B1, B2)
    g = jnp.array([3.0 + 4.0j, 0.0, 1e-3j], jnp.complex64)
    state = optimizer.init(g)
    for _ in range(5):
        _, state = optimizer.update(g, state)
        # 1 − b2^t loses three of float32's seven digits at t = 1.
        np.testing.assert_allclose(bias_corrected_second_moment(state, B2), [25.0, 0.0, 1e-6], rtol=1e-4)
