"""Factors on learning rate and weight decay by path, alone and in the whole optimizer."""

import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from small import adamw_step, complex_normal

from sem_jax.config import ConfigError, OptimizerConfig
from sem_jax.optim import (
    add_weight_decay,
    group_rates,
    langevin_adamw,
    make_optimizer,
    parameter_factors,
    scale_by_group,
)

pytestmark = pytest.mark.usefixtures("quick_compilation")


def draw_tree(rng):
    """Real and complex leaves, layers, a list, and two groups of which one begins with the other's name."""
    return {
        "mixers": {"gain": complex_normal(rng, 2, 3), "out": complex_normal(rng, 2, 3, 3)},
        "propagators": {"edges": [rng.normal(size=(2, 4)), rng.normal(size=(2, 5))]},
        "readout": {"weight": complex_normal(rng, 3, 3), "bias": rng.normal(size=3)},
        "readout2": {"weight": rng.normal(size=(3, 2))},
    }


TREE = draw_tree(np.random.default_rng(0))
MATRICES = {
    "mixers": {"gain": False, "out": True},
    "propagators": {"edges": [False, False]},
    "readout": {"weight": True, "bias": False},
    "readout2": {"weight": True},
}
SINGLE = jax.tree.map(lambda x: x.astype(np.complex64 if np.iscomplexobj(x) else np.float32), TREE)


def test_the_longest_path_of_whole_keys_decides():
    factors = {"mixers/out": 3.0, "mixers": 0.5, "propagators/edges/1": 0.0, "readout": 2.0}
    assert parameter_factors(factors, TREE) == {
        "mixers": {"gain": 0.5, "out": 3.0},
        "propagators": {"edges": [1.0, 0.0]},
        "readout": {"weight": 2.0, "bias": 2.0},
        "readout2": {"weight": 1.0},
    }


@pytest.mark.parametrize(
    ("path", "close"),
    [
        ("reedout", "readout"),
        ("mixers/ouut", "mixers/out"),
        ("propagators/edges/2", "propagators/edges/1"),
        ("readout/", "readout"),
        ("zzz", "mixers, propagators, readout, readout2"),
    ],
)
def test_a_path_to_nothing_is_refused_with_what_comes_close(path, close):
    for init in (scale_by_group({path: 1.0}).init, add_weight_decay(0.1, None, {path: 1.0}).init):
        with pytest.raises(ValueError, match=f"'{path}'.*{close}"):
            init(TREE)
    for field in ("lr_factors", "decay_factors"):
        optimizer = make_optimizer(OptimizerConfig(**{field: f"{path}=0.5"}), max_steps=1000, seed=0)
        with pytest.raises(ConfigError, match=rf"config\.optimizer\.{field}: .*'{path}'.*{close}"):
            jax.eval_shape(optimizer.init, TREE)


def test_a_factor_on_what_never_decays_is_refused():
    for factors, path in (({"readout/bias": 2.0}, "readout/bias"), ({"propagators": 0.5}, "propagators")):
        with pytest.raises(ValueError, match=f"nothing in '{path}' decays"):
            add_weight_decay(0.1, MATRICES, factors).init(TREE)
        add_weight_decay(0.1, None, factors).init(TREE)
    for factors in ({"readout": 2.0}, {"propagators": 0.0}):
        add_weight_decay(0.1, MATRICES, factors).init(TREE)


def test_without_factors_nothing_is_computed():
    rate = jnp.float32(0.1)
    updates, _ = scale_by_group({}).update(TREE, optax.EmptyState())
    assert all(new is old for new, old in zip(jax.tree.leaves(updates), jax.tree.leaves(TREE), strict=True))
    assert all(leaf is rate for leaf in jax.tree.leaves(group_rates({}, rate, TREE)))


@pytest.mark.parametrize("decays", [MATRICES, None], ids=["matrices", "all"])
def test_decay_without_factors_gives_the_bits_of_optax(decays):
    params = jax.tree.map(jnp.asarray, TREE)
    # Compiled, XLA may contract a·b + c to one rounding in one program and not in the other; so nothing rounds there.
    whole = jax.tree.map(lambda x: jnp.round(8 * x), params)
    for wrap, tree, rate in ((lambda f: f, params, 0.3), (jax.jit, whole, 0.25)):
        ours, theirs = add_weight_decay(rate, decays, {}), optax.add_decayed_weights(rate, decays)
        our_updates, _ = wrap(ours.update)(tree, ours.init(tree), tree)
        their_updates, _ = wrap(theirs.update)(tree, theirs.init(tree), tree)
        chex.assert_trees_all_equal(our_updates, their_updates)
    with pytest.raises(ValueError, match="with params"):
        ours.update(params, ours.init(params))


def test_it_scales_the_learning_rate_in_anybodys_chain():
    optimizer = optax.chain(optax.sgd(0.1), scale_by_group({"readout": 2.0, "mixers/out": 0.0}))
    params = jax.tree.map(jnp.asarray, TREE)
    updates, _ = jax.jit(optimizer.update)(params, optimizer.init(params), params)
    np.testing.assert_allclose(updates["readout"]["weight"], -0.2 * TREE["readout"]["weight"], rtol=1e-6)
    np.testing.assert_allclose(updates["readout2"]["weight"], -0.1 * TREE["readout2"]["weight"], rtol=1e-6)
    np.testing.assert_array_equal(updates["mixers"]["out"], 0)
    broken = params | {"mixers": params["mixers"] | {"out": jnp.full((2, 3, 3), jnp.nan)}}
    np.testing.assert_array_equal(optimizer.update(broken, optimizer.init(params))[0]["mixers"]["out"], 0)


def test_every_group_follows_the_specification_with_its_own_rate_and_decay():
    config = OptimizerConfig(
        clip_norm=0.0,
        weight_decay=0.1,
        lr_factors="mixers=0.5,mixers/out=3,readout=0",
        decay_factors="mixers=0,readout2=4",
    )
    leaves = {  # factor on the rate, and the decay that is left of 0.1
        ("mixers", "gain"): (0.5, 0.0), ("mixers", "out"): (3.0, 0.0), ("propagators", "edges", 0): (1.0, 0.0),
        ("readout", "weight"): (0.0, 0.1), ("readout", "bias"): (0.0, 0.0), ("readout2", "weight"): (1.0, 0.4),
    }  # fmt: skip
    rng = np.random.default_rng(1)
    grads = [draw_tree(rng) for _ in range(6)]
    rates = rng.uniform(1e-3, 1e-2, size=6)
    with jax.enable_x64(True):
        optimizer = langevin_adamw(config, lambda step: jnp.asarray(rates)[step], seed=0, decays=MATRICES)
        update, params = jax.jit(optimizer.update), jax.tree.map(jnp.asarray, TREE)
        state = optimizer.init(params)
        for step, g in enumerate(grads):
            updates, state = update(g, state, params, step=jnp.int32(step))
            params = optax.apply_updates(params, updates)

    def pick(tree, path):
        for key in path:
            tree = tree[key]
        return np.asarray(tree)

    for path, (factor, decay) in leaves.items():
        p, m, v = pick(TREE, path), 0.0, 0.0
        for t, (g, rate) in enumerate(zip(grads, rates, strict=True), start=1):
            p, m, v = adamw_step(p, pick(g, path), m, v, t, factor * rate, decay, config)
        # Some 20 roundings a step of 1e-16, of parameters near 1; 1 − b2^t costs three digits more at first.
        np.testing.assert_allclose(pick(params, path), p, rtol=1e-12, atol=1e-15)


def noisy_step(lr_factors, temperature, noise_cap):
    """Updates of one step from rest, whose gradients are `SINGLE`."""
    config = OptimizerConfig(temperature=temperature, noise_cap=noise_cap, lr_factors=lr_factors)
    optimizer = langevin_adamw(config, optax.constant_schedule(1e-2), seed=0)
    zero = jax.tree.map(jnp.zeros_like, SINGLE)
    return jax.jit(optimizer.update)(SINGLE, optimizer.init(zero), zero, step=0)[0]


@pytest.mark.parametrize(("noise_cap", "ratio"), [(1e9, 0.5), (1e-3, 0.25)])
def test_the_noise_has_the_groups_rate_under_its_root_and_the_cap_has_it_whole(noise_cap, ratio):
    def noise(lr_factors):
        warm, cold = (noisy_step(lr_factors, temperature, noise_cap) for temperature in (1e-2, 0.0))
        return jax.tree.map(lambda a, b: np.asarray(a) - np.asarray(b), warm, cold)

    one, quarter = noise(""), noise("mixers=0.25,readout=0.25")
    # The noise is a difference of updates of at most 1 % + 3σ, which round by 6e-8 of themselves.
    tolerance = 4 * 6e-8 * max(np.abs(leaf).max() + 1e-2 for leaf in jax.tree.leaves(one))
    for group in ("mixers", "readout"):
        scaled = jax.tree.map(lambda x: ratio * x, one[group])
        chex.assert_trees_all_close(quarter[group], scaled, rtol=0, atol=tolerance)
    chex.assert_trees_all_close(quarter["readout2"], one["readout2"], rtol=0, atol=tolerance)


def test_a_frozen_group_keeps_its_bits_and_draws_no_noise():
    config = OptimizerConfig(warmup_steps=0, temperature=1e-2, decay_all=True, lr_factors="readout=0,mixers/gain=0")
    optimizer = make_optimizer(config, max_steps=1000, seed=0)
    start = params = jax.tree.map(jnp.asarray, SINGLE)
    state, update = optimizer.init(params), jax.jit(optimizer.update)
    rng = np.random.default_rng(2)
    for step in range(5):
        updates, state = update(draw_tree(rng), state, params, loss=1.0, step=step)
        params = optax.apply_updates(params, updates)
    assert (state.skipped, state.inner.direction["adam"].count) == (0, 5)
    frozen = {"readout": params["readout"], "gain": params["mixers"]["gain"]}
    chex.assert_trees_all_equal(frozen, {"readout": start["readout"], "gain": start["mixers"]["gain"]})
    moved = params["mixers"]["out"], *params["propagators"]["edges"], params["readout2"]["weight"]
    before = start["mixers"]["out"], *start["propagators"]["edges"], start["readout2"]["weight"]
    assert all((a != b).all() for a, b in zip(moved, before, strict=True))
    program = str(jax.make_jaxpr(optimizer.update)(params, state, params, loss=1.0, step=0))
    assert re.findall(r"u32\[(\d+),\d+\] = random_bits", program) == [str(len(moved))]  # a row for each small leaf
