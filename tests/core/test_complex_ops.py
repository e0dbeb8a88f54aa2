from __future__ import annotations

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sem_jax.core.complex_ops import (
    abs_sq,
    complex_matmul,
    complex_normal,
    cos_sin,
    expi,
    one_minus_exp_neg,
    real_matmul,
    rms_norm,
    stored,
)

SEEDS = st.integers(0, 2**31 - 1)

pytestmark = pytest.mark.usefixtures("quick_compilation")


def complex_array(rng, *shape):
    return rng.normal(size=shape) + 1j * rng.normal(size=shape)


@given(seed=SEEDS, lead=st.sampled_from([(), (3,), (2, 3)]))
@pytest.mark.usefixtures("x64")
def test_complex_matmul_is_the_product_with_the_transposed_weight(seed, lead):
    rng = np.random.default_rng(seed)
    x, weight = complex_array(rng, *lead, 5), complex_array(rng, 4, 5)
    # 5 terms of size ~2: rounding below 10·1e-16·2.
    np.testing.assert_allclose(complex_matmul(x, weight), x @ weight.T, atol=1e-14)
    np.testing.assert_allclose(complex_matmul(x, weight.real), x @ weight.real.T, atol=1e-14)


def test_complex_matmul_takes_parts_apart_without_changing_their_precision():
    x, weight = np.ones((2, 3), np.complex64), np.ones((4, 3), np.complex64)
    assert complex_matmul(x, weight).dtype == jnp.complex64


@given(seed=SEEDS, imag=st.sampled_from([1.0, 1e-4, 0.0]))
def test_three_real_products_err_by_the_rounding_of_the_whole_not_of_the_smaller_part(seed, imag):
    rng = np.random.default_rng(seed)
    x, weight = (complex_array(rng, rows, 256) for rows in (3, 5))
    x, weight = ((z.real + 1j * imag * z.imag).astype(np.complex64) for z in (x, weight))
    exact = x.astype(complex) @ weight.astype(complex).T
    # Rounded sums of 256 terms: sqrt(256) eps of ‖x‖·‖w‖/sqrt(256) each; some four of them meet in a part.
    bound = 8 * np.finfo(np.float32).eps * np.outer(np.linalg.norm(x, axis=1), np.linalg.norm(weight, axis=1))
    error = complex_matmul(x, weight) - exact
    assert np.all(np.abs(error.real) < bound)
    assert np.all(np.abs(error.imag) < bound)
    if imag == 0:  # the products of the imaginary parts are exact zeros
        np.testing.assert_array_equal(complex_matmul(x, weight).imag, 0)


def test_real_matmul_is_the_product_with_the_transposed_weight():
    x, weight = np.arange(6.0).reshape(2, 3), np.arange(12.0).reshape(4, 3)
    np.testing.assert_array_equal(real_matmul(x, weight), x @ weight.T)  # small integers: exact


def test_one_minus_exp_neg_is_accurate_to_rounding_at_every_size():
    x = np.array([0, 1e-30, 1e-8, 1e-3, 0.5, 1, 10, 90, 1e6], np.float32)
    # tanh and exp of XLA are good to a few units of 6e-8.
    np.testing.assert_allclose(one_minus_exp_neg(x), -np.expm1(-x.astype(float)), rtol=5e-7)
    slope = jax.jit(jax.vmap(jax.grad(one_minus_exp_neg)))(x)
    # Below 1e-38 float32 has no full precision, and XLA rounds to zero.
    np.testing.assert_allclose(slope, np.exp(-x.astype(float)), rtol=5e-7, atol=1e-38)


def test_expi_is_unimodular_even_at_large_phases():
    phase = np.array([0, 1e-9, 0.5, 3.0, 2e3, -1e5], np.float32)
    # Two roundings of numbers of size one.
    np.testing.assert_allclose(np.abs(np.asarray(expi(phase), np.complex128)), 1, atol=2e-7)
    np.testing.assert_allclose(expi(phase[:4]), np.exp(1j * phase[:4]), atol=2e-7)


def test_abs_sq_has_value_and_gradient_at_zero():
    assert abs_sq(jnp.complex64(3 - 4j)) == 25
    assert abs_sq(jnp.float32(-3)) == 9
    assert jax.grad(abs_sq)(jnp.complex64(0)) == 0


def test_jax_grad_is_the_conjugate_of_steepest_ascent():
    # L = |z − w|² rises fastest along z − w; ∂L/∂x − i ∂L/∂y is 2·conj(z − w).
    z, w = jnp.complex64(1 + 2j), jnp.complex64(-2 + 1j)
    gradient = jax.grad(lambda z: abs_sq(z - w))(z)
    np.testing.assert_allclose(gradient, 2 * np.conj(z - w), rtol=1e-6)
    step = 1e-2 * gradient.conj()
    assert abs_sq(z - step - w) < abs_sq(z - w)


jit_rms_norm = jax.jit(rms_norm)


def numpy_rms_norm(z, gamma):
    power = np.abs(z) ** 2
    active = np.maximum((power > 1e-12).sum(-1, keepdims=True), 1)
    return z * gamma / (np.sqrt(power.sum(-1, keepdims=True) / active) + 1e-8)


@given(seed=SEEDS, dim=st.integers(1, 6), zeros=st.integers(0, 6))
@pytest.mark.usefixtures("x64")
def test_rms_norm_averages_over_the_active_entries_only(seed, dim, zeros):
    rng = np.random.default_rng(seed)
    z, gamma = complex_array(rng, 3, dim), rng.normal(size=dim)
    z[:, : min(zeros, dim)] = 1e-7  # |z|² = 1e-14 does not count
    np.testing.assert_allclose(jit_rms_norm(z, gamma), numpy_rms_norm(z, gamma), rtol=1e-13)


@given(seed=SEEDS, log_scale=st.floats(-3, 6))
@pytest.mark.usefixtures("x64")
def test_rms_norm_keeps_phases_and_forgets_the_scale(seed, log_scale):
    rng = np.random.default_rng(seed)
    z, gamma = complex_array(rng, 4, 5), rng.uniform(0.5, 2, size=5)
    y = np.asarray(jit_rms_norm(10**log_scale * z, gamma))
    np.testing.assert_allclose(np.angle(y * z.conj()), 0, atol=1e-14)
    # The 1e-8 beside the root mean square is all that knows the scale.
    np.testing.assert_allclose(y, jit_rms_norm(z, gamma), rtol=2e-8 * max(1, 10**-log_scale))
    np.testing.assert_allclose(np.mean(np.abs(y / gamma) ** 2, axis=-1), 1, rtol=4e-8 * max(1, 10**-log_scale))


def test_rms_norm_of_zero_is_zero_with_a_zero_gradient():
    z, gamma = jnp.zeros(4, jnp.complex64), jnp.ones(4)
    np.testing.assert_array_equal(rms_norm(z, gamma), np.zeros(4))
    gradient = jax.jit(jax.grad(lambda z, gamma: jnp.sum(abs_sq(rms_norm(z, gamma))), argnums=(0, 1)))
    z_bar, gamma_bar = gradient(z, gamma)
    np.testing.assert_array_equal(z_bar, np.zeros(4))
    np.testing.assert_array_equal(gamma_bar, np.zeros(4))


def test_rms_norm_has_a_finite_gradient_beside_a_zero_vector():
    z = jnp.stack([jnp.zeros(3, jnp.complex64), jnp.ones(3, jnp.complex64)])
    chex.assert_tree_all_finite(jax.jit(jax.grad(lambda z: jnp.sum(rms_norm(z, jnp.ones(3)).real)))(z))


@pytest.mark.parametrize("variance", [1.0, 0.02])
def test_complex_normal_is_circular_with_the_given_power(variance):
    z = np.asarray(complex_normal(jax.random.key(0), (200, 200), variance), np.complex128) / np.sqrt(variance)
    # Standard errors with n = 4e4: 1/sqrt(n) = .005 of the power, .005 of Σz² and of the mean; five of them allowed.
    assert abs(np.mean(np.abs(z) ** 2) - 1) < 0.025
    assert abs(np.mean(z**2)) < 0.025
    assert abs(np.mean(z)) < 0.025


def test_cos_and_sin_are_the_library_s_to_two_roundings_up_to_8000():
    phase = np.concatenate([np.linspace(-8000, 8000, 200_001), np.linspace(-7, 7, 20_001)]).astype(np.float32)
    cos, sin = jax.jit(cos_sin)(phase)
    # Values up to 1, a polynomial of one rounding and its sum of another: 2 * 6e-8.
    np.testing.assert_allclose(cos, np.cos(phase.astype(np.float64)), atol=1.2e-7, rtol=0)
    np.testing.assert_allclose(sin, np.sin(phase.astype(np.float64)), atol=1.2e-7, rtol=0)


def test_cos_and_sin_of_a_phase_without_digits_still_lie_on_the_circle():
    cos, sin = cos_sin(np.array([1e6, -1e9, 3e38], np.float32))
    # Beyond the interval of the polynomials their truncation adds 1e-6.
    np.testing.assert_allclose(cos**2 + sin**2, 1, atol=3e-6)


def test_derivatives_of_cos_and_sin_are_sin_and_cos():
    phase = np.linspace(-9, 9, 101, dtype=np.float32)
    (cos, sin), (d_cos, d_sin) = jax.jvp(cos_sin, (phase,), (2 * np.ones_like(phase),))
    np.testing.assert_array_equal(d_cos, -2 * sin)
    np.testing.assert_array_equal(d_sin, 2 * cos)


def test_what_is_stored_has_the_values_and_gradients_of_the_function():
    rng = np.random.default_rng(0)
    a, b = (rng.normal(size=(3, 4)).astype(np.float32) for _ in range(2))

    def direct(a, b):
        return jnp.sum(jnp.tanh(a * b) * a)

    def through(a, b):
        return jnp.sum(stored(lambda x, y: jnp.tanh(x * y), a, b) * a)

    for ours, theirs in zip(
        jax.tree.leaves(jax.value_and_grad(through, (0, 1))(a, b)),
        jax.tree.leaves(jax.value_and_grad(direct, (0, 1))(a, b)),
        strict=True,
    ):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-6)  # a sum of 12 terms of order one


def test_on_a_cpu_a_stored_value_is_not_fused_into_its_readers():
    def twice(x):
        y = stored(cos_sin, x)
        return jnp.concatenate([y[0] * x, y[1] + x], axis=1)

    compiled = jax.jit(twice).lower(np.ones((3, 256), np.float32)).compile().as_text()
    assert "while" in compiled
