"""What Langevin noise samples in the long run: Boltzmann's distribution at the temperature that was asked for.

Each test runs thousands of independent copies of a small system at once; the copies after the last step are the sample.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import linalg, stats

from sem_jax.config import OptimizerConfig
from sem_jax.optim import conjugate_gradients, langevin_adamw, langevin_noise

SEED = 7
SURPRISE = 1e-6  # probability that a correct sampler fails one check; seeds are fixed, so none does by chance


def assert_variance(samples, variance):
    """The variance around 0 is within its chi-square interval."""
    low, high = stats.chi2.ppf([SURPRISE / 2, 1 - SURPRISE / 2], samples.size) / samples.size
    assert low < np.mean(np.float64(samples) ** 2) / variance < high


def components(samples):
    """{name: real array} of the real components of real and complex leaves."""
    parts = {}
    for name, leaf in samples.items():
        parts |= {f"{name}.real": leaf.real, f"{name}.imag": leaf.imag} if np.iscomplexobj(leaf) else {name: leaf}
    return parts


def sample(loss, start, second_moment, temperature, rate, steps):
    """Positions after many steps θ ← θ − η G ∂loss + noise with a constant G = 1/√v, v one number a leaf."""
    moments = {name: jnp.full(leaf.shape, second_moment[name]) for name, leaf in start.items()}
    precondition = optax.stateless(lambda g, params: {name: -rate * g[name] / second_moment[name] ** 0.5 for name in g})
    noise = langevin_noise(temperature, noise_floor=1e-4, noise_cap=1e9, seed=SEED)
    optimizer = optax.chain(conjugate_gradients(), precondition, noise)

    def step(carry, t):
        theta, state = carry
        extra = {"second_moment": moments, "learning_rate": rate, "step": t}
        updates, state = optimizer.update(jax.grad(loss)(theta), state, theta, **extra)
        return (optax.apply_updates(theta, updates), state), None

    run = jax.jit(lambda theta: jax.lax.scan(step, (theta, optimizer.init(theta)), jnp.arange(steps))[0][0])
    return jax.device_get(run(start))


def test_half_the_learning_rate_samples_the_same_gaussian():
    T, stiffness = 1e-3, {"x": 2.0, "z": 0.5}
    start = {"x": jnp.zeros(8000), "z": jnp.zeros(4000, jnp.complex64)}

    def loss(theta):
        return sum(k / 2 * jnp.sum(jnp.abs(theta[name]) ** 2) for name, k in stiffness.items())

    # η G k is 0.02 and 0.01 in both leaves: 10 relaxation times leave e^-20 of the start, and the finite step adds
    # η G k / 2, at most 1 %, to variances whose own interval is 7 % or more to either side.
    whole, half = (
        components(sample(loss, start, {"x": 4.0, "z": 0.25}, T, rate, steps))
        for rate, steps in ((0.02, 500 * 2), (0.01, 1000 * 2))
    )
    for name in whole:
        variance = T / stiffness[name[0]]
        for samples in (whole[name], half[name]):
            assert_variance(samples, variance)
            assert stats.kstest(samples / np.sqrt(variance), "norm").pvalue > SURPRISE
        assert stats.ks_2samp(whole[name], half[name]).pvalue > SURPRISE


def test_the_virial_is_the_temperature_of_every_component():
    T, rate, second_moment = 0.1, 0.05, {"x": 4.0, "z": 0.25}
    n = 10_000

    def loss(theta):  # quartic, and the real and the complex leaf are coupled
        x_sq, z_sq = theta["x"] ** 2, jnp.abs(theta["z"]) ** 2
        return jnp.sum((x_sq + z_sq) ** 2) / 4

    start = {"x": jnp.full(n, 0.3), "z": jnp.full(n, 0.3 + 0.3j, jnp.complex64)}
    theta = {
        name: np.float64(part) for name, part in components(sample(loss, start, second_moment, T, rate, 1500)).items()
    }
    radius_sq = sum(part**2 for part in theta.values())
    total = np.zeros(n)
    for name, part in theta.items():
        gradient = radius_sq * part
        # In the stationary state E θ'² = E θ², so E θg = T + (η G / 2) E g²: the last term is the finite step's.
        virial = part * gradient - rate / second_moment[name[0]] ** 0.5 / 2 * gradient**2
        error = stats.norm.isf(SURPRISE / 2) * virial.std() / np.sqrt(n)
        assert abs(virial.mean() - T) < error < 0.2 * T
        total += virial
    assert len(theta) == 3  # d: a complex entry has two components
    assert abs(total.mean() - 3 * T) < stats.norm.isf(SURPRISE / 2) * total.std() / np.sqrt(n)


def stationary_variance(k, G, rate, T, gradient_variance, decay, b1):
    """Of one real component under momentum, gradient noise, decay and Langevin noise: a linear system, solved exactly.

    m' = b1 m + (1 − b1)(k θ + ε), θ' = (1 − η λ) θ − η G m' + √(2 T η G) ξ.
    """
    share = 1 - b1
    forward = np.array([[1 - rate * decay - rate * G * share * k, -rate * G * b1], [share * k, b1]])
    kick = np.array([-rate * G * share, share])
    forcing = gradient_variance * np.outer(kick, kick) + np.diag([2 * T * rate * G, 0.0])
    return linalg.solve_discrete_lyapunov(forward, forcing)[0, 0]


@pytest.mark.parametrize("decay", [0.0, 0.5])
def test_gradient_noise_adds_to_the_temperature_and_decay_to_the_stiffness(decay):
    T, rate, sigma, k, n = 0.01, 0.02, 1.0, 1.0, 8000
    config = OptimizerConfig(
        temperature=T,
        b1=0.5,
        b2=0.9999,
        clip_norm=0.0,
        noise_cap=1e9,
        weight_decay=decay,
        decay_all=True,
        lr_factors="z=0.5",
    )
    optimizer = langevin_adamw(config, optax.constant_schedule(rate), SEED)
    start = {"x": jnp.zeros(n), "z": jnp.zeros(n // 2, jnp.complex64)}

    def step(carry, t):
        theta, state = carry
        ex, er, ei = jax.random.split(jax.random.fold_in(jax.random.key(1), t), 3)
        noise = {
            "x": jax.random.normal(ex, (n,)),
            "z": jax.lax.complex(*(jax.random.normal(e, (n // 2,)) for e in (er, ei))),
        }
        grads = jax.tree.map(lambda p, e: jnp.conj(k * p + sigma * e), theta, noise)  # as jax.grad returns them
        updates, state = optimizer.update(grads, state, theta, step=t)
        return (optax.apply_updates(theta, updates), state), None

    run = jax.jit(lambda theta: jax.lax.scan(step, (theta, optimizer.init(theta)), jnp.arange(2000))[0][0])
    found = components(jax.device_get(run(start)))
    for name, samples in found.items():
        parts, eta = (2, rate / 2) if name.startswith("z") else (1, rate)
        root_v = np.sqrt(parts * sigma**2)
        for _ in range(20):  # √v̂ holds the drift, too, whose size follows from it
            exact = stationary_variance(k, 1 / root_v, eta, T, sigma**2, decay, config.b1)
            root_v = np.sqrt(parts * (sigma**2 + k**2 * exact))
        # v̂ is an average of 2000 squares: √v̂ is off by 1.6 % in an entry, and the mean over entries by 3/8 · 0.1 %.
        assert_variance(samples, exact)
        effective = T + eta * sigma**2 / (2 * root_v)
        # What docs/optimizer.md states, to first order in the step's length: half of it from the step itself, and
        # b1 / (1 − b1) from the force that momentum delays.
        stiffness = k + decay * root_v
        length = eta / root_v * stiffness
        assert exact == pytest.approx(effective / stiffness, rel=length * (0.5 + config.b1 / (1 - config.b1)))
        assert length < 0.03
        assert effective > 1.3 * T
