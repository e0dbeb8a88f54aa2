import chex
import golden_models
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from small import adamw_step

from sem_jax.config import OptimizerConfig
from sem_jax.optim import global_norm, langevin_adamw, make_optimizer

STEADY = {"warmup_steps": 0, "decay_steps": 0}


def train(optimizer, params, grads, jit=True, **extra):
    """Parameters after one update for each tree in grads."""
    update, apply = (jax.jit(f) if jit else f for f in (optimizer.update, optax.apply_updates))
    state = optimizer.init(params)
    for step, g in enumerate(grads):
        now = {"step": jnp.int32(step)} | extra if extra else {}
        updates, state = update(g, state, params, **now)
        params = apply(params, updates)
    return params


@pytest.mark.parametrize("jit", [pytest.param(False, marks=pytest.mark.slow), True])
@pytest.mark.parametrize("clip_norm", [0.0, 1.0])
def test_real_trees_give_the_bits_of_adamw(jit, clip_norm):
    config = OptimizerConfig(**STEADY, learning_rate=1e-2, clip_norm=clip_norm)
    mask = {"w": True, "b": False}
    ours = make_optimizer(config, max_steps=100, seed=0, decays=mask)
    adamw = optax.adamw(config.learning_rate, config.b1, config.b2, config.eps, weight_decay=0.1, mask=mask)
    theirs = optax.chain(optax.clip_by_global_norm(clip_norm) if clip_norm else optax.identity(), adamw)
    rng = np.random.default_rng(0)
    params, *grads = [
        {"w": jnp.asarray(rng.normal(size=(8, 5)), jnp.float32), "b": jnp.asarray(rng.normal(size=5), jnp.float32)}
        for _ in range(11)
    ]
    our_params = train(ours, params, grads, jit, loss=jnp.float32(1))
    their_params = train(theirs, params, grads, jit)
    # Operation by operation the bits are equal. Compiled, XLA may contract a·b + c to one rounding in one program and
    # not in the other; and clipping multiplies by a factor where optax divides and multiplies. A rounding or two of the
    # update, which is much smaller than the parameter, in each of 10 steps.
    tolerance = 10 * float(jnp.finfo(jnp.float32).eps) if jit or clip_norm else 0
    chex.assert_trees_all_close(our_params, their_params, rtol=0, atol=tolerance)


def test_twenty_steps_follow_the_specification():
    config = OptimizerConfig(clip_norm=2.0)
    rng = np.random.default_rng(0)
    rates = rng.uniform(1e-3, 1e-2, size=20)

    def tree():
        return {"mixers": {"z": rng.normal(size=(2, 3)) + 1j * rng.normal(size=(2, 3))}, "w": rng.normal(size=(3, 2))}

    start, grads = tree(), [tree() for _ in range(20)]
    with jax.enable_x64(True):
        decays = {"mixers": {"z": False}, "w": True}
        optimizer = langevin_adamw(config, lambda step: jnp.asarray(rates)[step], seed=0, decays=decays)
        found = train(optimizer, jax.tree.map(jnp.asarray, start), grads, lr_scale=1.0)

    clips = [min(1.0, 2.0 / np.sqrt(sum(np.sum(np.abs(x) ** 2) for x in jax.tree.leaves(g)))) for g in grads]
    assert min(clips) < 1
    for pick, decays in ((lambda tree: tree["mixers"]["z"], 0), (lambda tree: tree["w"], 1)):
        p, m, v = pick(start), 0.0, 0.0
        for t, (g, rate, clip) in enumerate(zip(grads, rates, clips, strict=True), start=1):
            p, m, v = adamw_step(p, clip * pick(g), m, v, t, rate, config.weight_decay * decays, config)
        # Some 20 roundings a step of 1e-16, of parameters near 1; 1 − b2^t costs three digits more at first.
        np.testing.assert_allclose(pick(found), p, rtol=1e-12)


def test_five_steps_equal_the_reference():
    golden = golden_models.load("model_tiny")
    names = [name.removeprefix("grad/") for name in golden if name.startswith("grad/")]
    # The reference couples these pairs of arrays as complex weights; those of its readout it leaves uncoupled.
    pairs = [name.removesuffix("_real") for name in names if name.endswith("weight_real")]
    real = [name for name in names if not name.endswith(("weight_real", "weight_imag"))]

    def tree(kind):
        def flat(names, suffix=""):
            return np.concatenate([golden[f"{kind}/{name}{suffix}"].ravel() for name in names])

        return {"real": flat(real), "complex": flat(pairs, "_real") + 1j * flat(pairs, "_imag")}

    config = OptimizerConfig(weight_decay=0.1, decay_all=True, clip_norm=0.0)
    optimizer = langevin_adamw(config, optax.constant_schedule(1.2e-3), seed=0)
    # `jax.grad` would return the conjugate of the recorded derivatives by real and imaginary part.
    factors = [(1 + step / 2) * (-1 if step == 3 else 1) for step in range(5)]
    grads = [jax.tree.map(lambda g, f=f: jnp.asarray(f * np.conj(g), g.dtype), tree("grad")) for f in factors]
    found = train(optimizer, jax.tree.map(jnp.asarray, tree("param")), grads, lr_scale=1.0)
    # A few float32 roundings of a parameter, and of five updates whose sum is at most 6e-3.
    chex.assert_trees_all_close(found, tree("adam5"), rtol=5e-7, atol=5e-8)


def test_the_norm_counts_a_complex_entry_once_by_its_modulus():
    z, x = jnp.array([3 + 4j, 0]), jnp.array([12.0])
    assert global_norm({"z": z, "x": x}) == 13.0
    split = {"real": z.real, "imag": z.imag, "x": x}
    assert global_norm(split) == 13.0


def test_clipping_bounds_the_gradient_that_adam_sees():
    config = OptimizerConfig(**STEADY, clip_norm=0.5)
    optimizer = make_optimizer(config, max_steps=10, seed=0)
    params = {"z": jnp.zeros((2, 2), jnp.complex64), "x": jnp.zeros(3)}
    grads = {"z": jnp.full((2, 2), 3 - 4j, jnp.complex64), "x": jnp.full(3, 7.0)}
    _, state = jax.jit(optimizer.update)(grads, optimizer.init(params), params, loss=1.0, step=0)
    seen = jax.tree.map(lambda m: m / (1 - config.b1), state.inner.direction["adam"].mu)
    assert global_norm(seen) == pytest.approx(0.5, rel=1e-6)
    np.testing.assert_allclose(seen["z"] / seen["x"][0], (3 + 4j) / 7, rtol=1e-6)


def test_the_learning_rate_follows_the_callers_step():
    config = OptimizerConfig(warmup_steps=10, decay_steps=20, lr_min_ratio=0.1, weight_decay=0.0)
    optimizer = make_optimizer(config, max_steps=100, seed=0)
    update = jax.jit(optimizer.update)
    params = {"b": jnp.ones(3)}
    state = optimizer.init(params)
    for step, share in ((0, 0.0), (5, 0.5), (10, 1.0), (50, 1.0), (90, 0.55), (100, 0.1)):
        updates, _ = update(params, state, params, loss=1.0, step=step)
        # Adam's first update is the learning rate. 1 − b2 is good to 1e-7 / 1e-3 in float32.
        np.testing.assert_allclose(updates["b"], -share * config.learning_rate, rtol=1e-4)


def test_the_guards_scale_reaches_the_noise_too():
    config = OptimizerConfig(temperature=1.0, noise_cap=0.1)
    optimizer = langevin_adamw(config, optax.constant_schedule(1e-2), seed=0)
    update = jax.jit(optimizer.update)
    params = {"w": jnp.ones((3, 3), jnp.complex64)}
    state = optimizer.init(params)
    full, _ = update(params, state, params, step=0, lr_scale=1.0)
    quarter, _ = update(params, state, params, step=0, lr_scale=0.25)
    chex.assert_trees_all_close(quarter, jax.tree.map(lambda u: u / 4, full), rtol=1e-6)


@pytest.mark.parametrize("temperature", [0.0, 1e-4])
def test_random_numbers_are_drawn_only_above_temperature_zero(temperature):
    optimizer = make_optimizer(OptimizerConfig(temperature=temperature), max_steps=2000, seed=0)
    params = {"z": jnp.ones((2, 2), jnp.complex64)}
    program = jax.make_jaxpr(optimizer.update)(params, optimizer.init(params), params, loss=1.0, step=0)
    assert ("random_bits" in str(program)) == (temperature > 0)


def test_it_minimises_over_complex_and_real_leaves():
    rng = np.random.default_rng(0)
    A = jnp.asarray(rng.normal(size=(8, 3)) + 1j * rng.normal(size=(8, 3)), jnp.complex64)
    target = jnp.asarray(rng.normal(size=3) + 1j * rng.normal(size=3), jnp.complex64)

    def loss(params):
        return jnp.mean(jnp.abs(A @ (params["z"] * params["gain"] - target)) ** 2)

    config = OptimizerConfig(learning_rate=3e-2, warmup_steps=10, decay_steps=500, lr_min_ratio=0.0, weight_decay=0.0)
    optimizer = make_optimizer(config, max_steps=600, seed=0)
    params = {"z": jnp.zeros(3, jnp.complex64), "gain": jnp.ones(3)}

    def step(carry, t):
        params, state = carry
        value, grads = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(grads, state, params, loss=value, step=t)
        return (optax.apply_updates(params, updates), state), value

    (_, state), losses = jax.jit(
        lambda: jax.lax.scan(step, (params, optimizer.init(params)), jnp.arange(600, dtype=jnp.int32))
    )()
    assert losses[-1] < 1e-6 * losses[0]
    assert state.skipped == 0
