import itertools
import os
import pathlib
import subprocess
import sys
import zlib

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import stats
from small import example_in

from sem_jax.config import OptimizerConfig
from sem_jax.optim import langevin_adamw, langevin_noise, with_langevin_noise

pytestmark = pytest.mark.usefixtures("quick_compilation")

T, FLOOR, CAP, SEED, RATE = 1e-3, 1e-4, 1e9, 7, 1e-2
SURPRISE = 1e-6  # probability that a correct sampler fails one check; seeds are fixed, so none does by chance


def sample(v, dtype=jnp.float32, rate=RATE, step=0, name="w", shape=(20_000,), **settings):
    """Noise of one leaf whose second moment is v everywhere."""
    noise = langevin_noise(**{"temperature": T, "noise_floor": FLOOR, "noise_cap": CAP, "seed": SEED} | settings)
    updates = {name: jnp.zeros(shape, dtype)}
    moments = {name: jnp.full(shape, v, jnp.float32)}
    updates, _ = noise.update(updates, noise.init(updates), second_moment=moments, learning_rate=rate, step=step)
    return np.asarray(updates[name])


def assert_normal(samples, variance):
    """Chi-square interval for the variance, Kolmogorov-Smirnov for the shape."""
    low, high = stats.chi2.ppf([SURPRISE / 2, 1 - SURPRISE / 2], samples.size) / samples.size
    assert low < np.mean(np.float64(samples) ** 2) / variance < high
    assert stats.kstest(samples.ravel() / np.sqrt(variance), "norm").pvalue > SURPRISE


def assert_uncorrelated(a, b):
    correlation = np.mean(a * b) / np.sqrt(np.mean(a**2) * np.mean(b**2))
    assert abs(correlation) < stats.norm.isf(SURPRISE / 2) / np.sqrt(a.size)


@pytest.mark.parametrize("v", [1e-6, 4.0])
def test_every_real_component_has_the_formulas_variance(v):
    variance = 2 * T * RATE / np.sqrt(v)
    assert_normal(sample(v), variance)
    z = sample(v, jnp.complex64)
    assert_normal(z.real, variance)
    assert_normal(z.imag, variance)
    assert_uncorrelated(z.real, z.imag)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_rounds_the_noise_and_does_not_bend_it(dtype):
    variance = 2 * T * RATE / 2
    found = np.float64(sample(4.0, dtype, shape=(400_000,)))
    # Rounding by at most 2⁻⁹ of each number moves the variance by less than 1 %.
    low, high = stats.chi2.ppf([SURPRISE / 2, 1 - SURPRISE / 2], found.size) / found.size
    assert 0.99 * low < np.mean(found**2) / variance < 1.01 * high
    assert abs(found.mean()) < stats.norm.isf(SURPRISE / 2) * np.sqrt(variance / found.size)
    # The largest of 400,000 normal numbers is below 4 sigma with a probability of exp(−400,000·6.3e-5) = 1e-11.
    assert np.abs(found).max() > 4 * np.sqrt(variance)


def test_the_floor_bounds_the_preconditioner():
    assert_normal(sample(1e-20), 2 * T * RATE / FLOOR)
    np.testing.assert_array_equal(sample(1e-20), sample(1e-10))


def test_the_cap_is_relative_to_the_learning_rate():
    assert_normal(sample(1e-6, noise_cap=0.5), (0.5 * RATE) ** 2)
    assert_normal(sample(1e-6, jnp.complex64, noise_cap=0.5).imag, (0.5 * RATE) ** 2)


def test_entries_that_have_seen_no_gradient_stay_put():
    config = OptimizerConfig(temperature=1.0, weight_decay=0.0, clip_norm=0.0)
    optimizer = langevin_adamw(config, optax.constant_schedule(1e-2), SEED)
    embedding = jax.random.normal(jax.random.key(0), (5, 4), jnp.complex64)
    seen = jnp.array([True, False, True, False, False])
    state, start = optimizer.init(embedding), embedding
    for step in range(3):
        grads = jnp.where(seen[:, None], embedding, 0)
        updates, state = jax.jit(optimizer.update)(grads, state, embedding, step=step)
        embedding = optax.apply_updates(embedding, updates)
    np.testing.assert_array_equal(embedding[~seen], start[~seen])
    assert (embedding[seen] != start[seen]).all()


def test_noise_is_a_function_of_seed_step_and_leaf():
    np.testing.assert_array_equal(sample(1.0, step=5), sample(1.0, step=jnp.int32(5)))
    draws = [sample(1.0), sample(1.0, step=1), sample(1.0, name="u"), sample(1.0, seed=SEED + 1)]
    for a, b in itertools.combinations(draws, 2):
        assert_uncorrelated(a, b)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.complex64])
@pytest.mark.parametrize("size", [3, 600, 1024, 1025])  # small leaves are drawn together, up to 1024 real entries
def test_a_leaf_of_any_size_has_the_numbers_of_its_own_key(dtype, size):
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(SEED), zlib.crc32(b"w")), 5)
    parts = jax.random.normal(key, (2, size) if dtype == jnp.complex64 else (1, size))
    noise = sample(1.0, dtype, step=5, shape=(size,))
    assert noise.dtype == dtype
    # One product with the standard deviation, two roundings of 6e-8 at most each.
    deviation = np.float32(np.sqrt(2 * T * RATE))
    np.testing.assert_allclose(noise.real, deviation * np.asarray(parts[0]), rtol=4e-7)
    np.testing.assert_allclose(noise.imag, deviation * np.asarray(parts[1]) if len(parts) == 2 else 0, rtol=4e-7)


def test_other_leaves_do_not_change_a_leafs_noise():
    noise = langevin_noise(T, FLOOR, CAP, SEED)
    tree = {"a": jnp.ones(3), "z": {"w": jnp.ones(4, jnp.complex64)}}
    args = {"learning_rate": RATE, "step": 3}
    both, _ = noise.update(tree, optax.EmptyState(), second_moment=jax.tree.map(jnp.real, tree), **args)
    part = {"z": tree["z"]}
    alone, _ = noise.update(part, optax.EmptyState(), second_moment=jax.tree.map(jnp.real, part), **args)
    chex.assert_trees_all_equal(both["z"], alone["z"])


def test_the_noise_does_not_depend_on_the_process():
    # Python salts its hash of strings anew in every process; the keys must not see that.
    program = """if True:
        import jax.numpy as jnp
        from sem_jax.optim import langevin_noise
        tree = {"mixers": {"w": jnp.ones(4)}}
        noise = langevin_noise(temperature=1.0, noise_floor=1e-4, noise_cap=1e9, seed=7)
        updates, _ = noise.update(tree, noise.init(tree), second_moment=tree, learning_rate=1.0, step=3)
        print(updates["mixers"]["w"].tolist())
    """

    def start(salt):
        environment = os.environ | {"PYTHONHASHSEED": salt, "JAX_PLATFORMS": "cpu"}
        return subprocess.Popen([sys.executable, "-c", program], env=environment, stdout=subprocess.PIPE, text=True)

    first, second = (process.communicate()[0] for process in [start("1"), start("2")])
    assert first == second
    assert first.startswith("[")


@pytest.mark.parametrize("rate", [RATE, optax.linear_schedule(RATE, 5 * RATE, 4)], ids=["constant", "schedule"])
def test_noise_around_an_optimizer_of_optax_has_the_formulas_variance(rate):
    adam = optax.chain(optax.clip_by_global_norm(1e9), optax.adamw(rate, b2=0.99))
    noisy = with_langevin_noise(adam, rate, T, FLOOR, CAP, SEED, b2=0.99)
    params = {"x": jnp.ones(20_000), "z": jnp.ones(20_000, jnp.complex64)}
    grads = {"x": jnp.full(20_000, 0.5), "z": jnp.full(20_000, 0.3 + 0.4j)}  # v̂ = 1/4 at every step
    quiet_state, state = adam.init(params), noisy.init(params)
    for count in range(3):
        quiet, quiet_state = adam.update(grads, quiet_state, params)
        updates, state = jax.jit(noisy.update)(grads, state, params)
        chex.assert_trees_all_close(state, quiet_state, rtol=1e-6)
        eta = rate(count) if callable(rate) else rate
        difference = jax.device_get(jax.tree.map(jnp.subtract, updates, quiet))
        for found in (difference["x"], difference["z"].real, difference["z"].imag):
            assert_normal(found, 2 * T * eta / 0.5)
    assert_uncorrelated(difference["x"], difference["z"].real)


def test_noise_around_an_optimizer_changes_from_step_to_step_and_vanishes_at_temperature_zero():
    params = jnp.ones(5000)
    quiet, noisy = (with_langevin_noise(optax.adam(RATE), RATE, temperature, FLOOR, CAP) for temperature in (0.0, T))
    first, state = noisy.update(params, noisy.init(params), params)
    second, _ = noisy.update(params, state, params)
    # Adam's own step is −η each time.
    assert_uncorrelated(np.asarray(first) + RATE, np.asarray(second) + RATE)
    updates, _ = quiet.update(params, quiet.init(params), params)
    chex.assert_trees_all_equal(updates, optax.adam(RATE).update(params, optax.adam(RATE).init(params))[0])


@pytest.mark.parametrize(
    ("optimizer", "number"), [(optax.sgd(0.1), 0), (optax.chain(optax.scale_by_adam(), optax.adam(0.1)), 2)]
)
def test_an_optimizer_without_one_second_moment_is_refused(optimizer, number):
    with pytest.raises(ValueError, match=f"one optax.ScaleByAdamState, and holds {number}.*optax.adamw"):
        with_langevin_noise(optimizer, 0.1, T).init(jnp.ones(2))


def test_the_example_of_the_documentation_converges():
    names = {}
    exec(example_in(pathlib.Path(__file__).parents[2] / "docs" / "optimizer.md"), names)
    assert int(names["state"].skipped) == 0
    # The well of stiffness 2 has a standard deviation of sqrt(1e-6/2) at T = 1e-6.
    assert 0 < float(jnp.abs(names["z"] - 1j).max()) < 0.01


def test_temperature_zero_is_the_identity():
    noise = langevin_noise(0.0, FLOOR, CAP, SEED)
    updates = {"z": jnp.array([1 + 2j, jnp.nan]), "x": jnp.zeros(2)}
    out, _ = noise.update(updates, noise.init(updates), second_moment=updates, learning_rate=RATE, step=0)
    assert out is updates


@pytest.mark.parametrize("settings", [(-1e-5, FLOOR, CAP), (T, 0.0, CAP), (T, FLOOR, 0.0)])
def test_impossible_settings_raise(settings):
    with pytest.raises(ValueError, match=f"temperature = {settings[0]}"):
        langevin_noise(*settings, SEED)


@pytest.mark.parametrize("rate", [0.2, 0.1])
def test_stationary_variance_on_a_quadratic_is_temperature_over_stiffness(rate):
    noise = langevin_noise(T, FLOOR, CAP, SEED)
    stiffness = {"x": jnp.repeat(jnp.array([0.5, 2.0]), 5000), "z": jnp.ones(5000)}
    moments = {"x": jnp.full(10_000, 4.0), "z": jnp.full(5000, 0.25)}
    theta = {"x": jnp.zeros(10_000), "z": jnp.zeros(5000, jnp.complex64)}

    def step(theta, t):
        drift = jax.tree.map(lambda p, k, v: -rate * k * p / jnp.sqrt(v), theta, stiffness, moments)
        updates, _ = noise.update(drift, optax.EmptyState(), second_moment=moments, learning_rate=rate, step=t)
        return optax.apply_updates(theta, updates), None

    theta = jax.device_get(jax.lax.scan(step, theta, jnp.arange(400))[0])
    for samples, k, v in (
        (theta["x"][:5000], 0.5, 4.0),
        (theta["x"][5000:], 2.0, 4.0),
        (theta["z"].real, 1.0, 0.25),
        (theta["z"].imag, 1.0, 0.25),
    ):
        # The factor is exact for a step of finite length: the chain is x' = (1 − ηGk) x + noise.
        assert_normal(samples, T / k / (1 - rate * k / np.sqrt(v) / 2))


def test_the_whole_optimizer_holds_the_temperature():
    config = OptimizerConfig(temperature=1e-2, b1=0.5, b2=0.9999, weight_decay=0.0, clip_norm=0.0, noise_cap=1e3)
    optimizer = langevin_adamw(config, optax.constant_schedule(1e-3), SEED)
    stiffness = {"x": 2.0, "z": 0.5}
    theta = {"x": jnp.full(400, 0.07), "z": jnp.full(200, 0.14 + 0.14j)}  # at the standard deviation √(T/k)
    gradient = jax.grad(lambda p: sum(k / 2 * jnp.sum(jnp.abs(p[name]) ** 2) for name, k in stiffness.items()))

    def step(carry, t):
        theta, state = carry
        updates, state = optimizer.update(gradient(theta), state, theta, step=t)
        theta = optax.apply_updates(theta, updates)
        return (theta, state), {name: jnp.mean(jnp.abs(p) ** 2) for name, p in theta.items()}

    carry = (theta, optimizer.init(theta))
    squares = jax.jit(lambda: jax.lax.scan(step, carry, jnp.arange(12_000)))()[1]
    # 8000 steps / some 150 steps of memory × 400 components are 20,000 independent samples, a variance good to 1 %.
    # The step's length, the momentum's delay and a v̂ that still follows the position add 2-4 %, as measured.
    for name, components in (("x", 1), ("z", 2)):
        assert np.mean(squares[name][4000:]) == pytest.approx(components * 1e-2 / stiffness[name], rel=0.1)
