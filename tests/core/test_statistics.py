"""Statistics against closed forms, within the standard errors of their samples."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sem_jax.core.statistics import (
    channel_entropy,
    describe,
    excess_kurtosis,
    hill_index,
    mean_entropy,
    phase_coherence,
    root_mean_square,
)

pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def circular(rng, *shape):
    return (rng.normal(size=shape) + 1j * rng.normal(size=shape)).astype(np.complex64)


# The variance of the sample kurtosis is μ₈/μ₄²-like: 24/n for a Gaussian (Kendall and Stuart, volume 1, chapter 12).
@pytest.mark.parametrize("parts", [1, 2])
def test_a_gaussian_has_no_excess_kurtosis(rng, parts):
    z = circular(rng, 50, 1000) if parts == 2 else rng.normal(size=(50, 1000)).astype(np.float32)
    assert abs(excess_kurtosis(jnp.asarray(z))) < 4 * np.sqrt(24 / (parts * z.size))


def test_kurtosis_of_two_points_and_of_a_spike_are_exact():
    assert excess_kurtosis(jnp.array([[3.0, 5.0, 3.0, 5.0]])) == pytest.approx(-2, rel=1e-6)  # whatever the mean
    spike = jnp.zeros((1, 64)).at[0, 5].set(1e-3)
    p = 1 / 64  # of a Bernoulli variable: (1 − 6pq)/(pq)
    assert excess_kurtosis(spike) == pytest.approx((1 - 6 * p * (1 - p)) / (p * (1 - p)), rel=1e-5)


@pytest.mark.parametrize("alpha", [0.7, 1.5, 3.0, 8.0])
def test_the_tail_index_of_a_pareto_sample_is_its_exponent(rng, alpha):
    x = (1 - rng.random((64, 1024))) ** (-1 / alpha)
    phase = np.exp(2j * np.pi * rng.random(x.shape))
    k = 256  # floor(sqrt(64·1024))
    assert hill_index(jnp.asarray(x * phase, jnp.complex64)) == pytest.approx(alpha, abs=4 * alpha / np.sqrt(k))


def test_the_tail_index_is_hills_formula_on_the_largest_entries():
    assert hill_index(jnp.array([[1.0, 8.0, 2.0, 4.0]])) == pytest.approx(2 / np.log(4 * 2), rel=1e-6)


@pytest.mark.parametrize("modulus", [100.0, 1e4 + 0.1, 1 / 3])
def test_equal_entries_have_no_tail(rng, modulus):
    phases = np.exp(2j * np.pi * rng.random((64, 1024)))
    assert jax.jit(hill_index)(jnp.full((64, 1024), modulus, jnp.float32)) > 1e3
    # Of a complex number the modulus is rounded, so that the largest ones differ in their last bits.
    assert jax.jit(hill_index)(jnp.asarray(modulus * phases, jnp.complex64)) > 1e3


def test_channels_in_phase_are_coherent_and_random_ones_as_a_random_walk(rng):
    dim, tokens = 256, 2000
    modulus = rng.random((tokens, dim)) + 0.1
    in_phase = modulus * np.exp(1j * rng.random((tokens, 1)))
    assert phase_coherence(jnp.asarray(in_phase, jnp.complex64)) == pytest.approx(1, abs=1e-5)
    opposed = np.where(np.arange(dim) % 2, -1, 1) * np.ones((tokens, 1))
    assert phase_coherence(jnp.asarray(opposed, jnp.complex64)) == pytest.approx(0, abs=1e-6)
    # |Σ e^{iθ}|/n is Rayleigh with mean sqrt(π/4n) and variance (1 − π/4)/n up to O(1/n) of themselves.
    random = np.exp(2j * np.pi * rng.random((tokens, dim)))
    expected, error = np.sqrt(np.pi / (4 * dim)), np.sqrt((1 - np.pi / 4) / (dim * tokens))
    assert phase_coherence(jnp.asarray(random, jnp.complex64)) == pytest.approx(
        expected, abs=4 * error + expected / dim
    )


def test_the_coherence_is_weighted_by_the_modulus():
    assert phase_coherence(jnp.array([[3.0, -1.0]], jnp.complex64)) == pytest.approx(0.5, rel=1e-6)
    assert phase_coherence(jnp.zeros((2, 4), jnp.complex64)) == 0
    assert np.isnan(phase_coherence(jnp.ones((2, 4))))  # a real array has no phases


def test_entropy_counts_the_channels_that_share_the_power():
    rows = jnp.array([[2, 2j, -2, -2j, 0, 0, 0, 0], [0, 0, 5j, 0, 0, 0, 0, 0]], jnp.complex64)
    assert channel_entropy(rows[:1]) == pytest.approx(2, rel=1e-6)
    assert channel_entropy(rows[1:]) == 0
    assert channel_entropy(rows) == pytest.approx(1, rel=1e-6)  # the mean over tokens
    assert channel_entropy(jnp.zeros_like(rows)) == 0
    power = np.array([0.5, 0.25, 0.25])
    assert channel_entropy(jnp.sqrt(jnp.asarray(power))[None]) == pytest.approx(1.5, rel=1e-6)
    assert mean_entropy(jnp.asarray(power)) == pytest.approx(1.5, rel=1e-6)


@pytest.mark.parametrize("size", [1e-30, 1.0, 1e30])
def test_size_changes_nothing_but_rms_and_largest(rng, size):
    z = circular(rng, 4, 8, 16)
    here, there = describe(jnp.asarray(z)), describe(jnp.asarray(z * np.float32(size)))
    assert there.rms == pytest.approx(float(here.rms) * size, rel=1e-5)
    assert there.largest == pytest.approx(float(here.largest) * size, rel=1e-5)
    for name in ("kurtosis", "tail", "entropy", "coherence"):
        assert getattr(there, name) == pytest.approx(float(getattr(here, name)), rel=1e-4, abs=1e-5), name


def test_the_first_bad_entry_is_found_in_the_order_of_the_array(rng):
    z = circular(rng, 2, 3, 4)
    whole = describe(jnp.asarray(z))
    assert (whole.bad, whole.first_bad.tolist()) == (0, [-1, -1, -1])
    z[1, 0, 2], z[1, 2, 3] = np.nan, complex(0, np.inf)
    found = describe(jnp.asarray(z))
    assert (found.bad, found.first_bad.tolist()) == (2, [1, 0, 2])


def test_the_root_mean_square_is_that_of_the_modulus():
    assert root_mean_square(jnp.array([[3 + 4j, 0]], jnp.complex64)) == pytest.approx(5 / np.sqrt(2), rel=1e-6)
