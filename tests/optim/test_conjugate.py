import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sem_jax.optim import conjugate_gradients


def complex_normal(rng, *shape):
    return jnp.asarray(rng.normal(size=shape) + 1j * rng.normal(size=shape), jnp.complex64)


@pytest.fixture
def least_squares():
    """‖A z − b‖² with A well conditioned, and its minimiser."""
    rng = np.random.default_rng(0)
    A, b = complex_normal(rng, 6, 4) / 4, complex_normal(rng, 6)
    return lambda z: jnp.sum(jnp.abs(A @ z - b) ** 2), np.linalg.lstsq(A, b)[0]


def descend(optimizer, loss, steps=600):
    z = jnp.zeros(4, jnp.complex64)

    def step(carry, _):
        z, state = carry
        updates, state = optimizer.update(jax.grad(loss)(z), state, z)
        return (optax.apply_updates(z, updates), state), None

    return jax.jit(lambda: jax.lax.scan(step, (z, optimizer.init(z)), length=steps)[0][0])()


def test_descent_converges_to_the_complex_minimum(least_squares):
    loss, minimum = least_squares
    found = descend(optax.chain(conjugate_gradients(), optax.sgd(0.2)), loss)
    np.testing.assert_allclose(found, minimum, atol=1e-5)


def test_descent_without_it_climbs_along_the_imaginary_axis(least_squares):
    loss, _ = least_squares
    found = descend(optax.sgd(0.2), loss, steps=100)
    assert not loss(found) < 1e3 * loss(jnp.zeros(4, jnp.complex64))


def test_direction_is_the_steepest_ascent_of_the_real_and_imaginary_parts(least_squares):
    loss, _ = least_squares
    z = complex_normal(np.random.default_rng(1), 4)
    ascent, _ = conjugate_gradients().update(jax.grad(loss)(z), optax.EmptyState())
    d_real, d_imag = jax.grad(lambda x, y: loss(jax.lax.complex(x, y)), argnums=(0, 1))(z.real, z.imag)
    np.testing.assert_allclose(ascent, d_real + 1j * d_imag, rtol=1e-5)


def test_real_leaves_pass_unchanged():
    grads = {"x": jnp.array([1.0, -0.0, jnp.nan]), "n": jnp.array([[2.5]], jnp.bfloat16)}
    updates, _ = conjugate_gradients().update(grads, optax.EmptyState())
    chex.assert_trees_all_equal(updates, grads)
    chex.assert_trees_all_equal_dtypes(updates, grads)
