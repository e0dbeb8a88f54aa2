"""Muon: the matrices of the layers take the polar factor of their momentum, all else is Adam's."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from optax import contrib

from sem_jax.config import ConfigError, OptimizerConfig, build, default
from sem_jax.optim import langevin_adamw, make_optimizer, matrices_of_layers, scale_by_muon

pytestmark = pytest.mark.usefixtures("quick_compilation")

CONFIG = OptimizerConfig(warmup_steps=0, decay_steps=0, clip_norm=0.0, weight_decay=0.0, matrices="muon")


def complex_stack(rng, *shape):
    return (rng.normal(size=shape) + 1j * rng.normal(size=shape)).astype(np.complex64)


def one_update(grads):
    optimizer = scale_by_muon()
    return jax.jit(optimizer.update)(grads, optimizer.init(grads))[0]


@pytest.mark.parametrize("shape", [(2, 12, 20), (2, 20, 12)])
@pytest.mark.parametrize("kind", ["real", "complex"])
def test_the_first_update_has_the_singular_vectors_of_the_gradient_and_values_of_one_size(shape, kind):
    g = complex_stack(np.random.default_rng(0), *shape)
    g = g if kind == "complex" else g.real
    update = one_update(g)
    rms = 0.2 * max(shape[1:]) ** 0.5
    for matrix, gradient in zip(update, g, strict=True):
        u, _, vh = np.linalg.svd(gradient, full_matrices=False)
        inner = u.conj().T @ matrix @ vh.conj().T / rms
        # The quintic of Newton-Schulz takes every singular value into 0.68..1.13 (Jordan et al., 2024).
        assert np.diag(inner).real.min() > 0.65
        assert np.diag(inner).real.max() < 1.2
        # Five products of float32 matrices with entries of order one.
        np.testing.assert_allclose(inner - np.diag(np.diag(inner)), 0, atol=2e-4)
        np.testing.assert_allclose(np.diag(inner).imag, 0, atol=2e-4)


@pytest.mark.parametrize("shape", [(2, 12, 20), (3, 20, 12), (1, 16, 16)])
@pytest.mark.parametrize("kind", ["real", "complex"])
def test_updates_are_those_of_optax_whose_iteration_takes_complex_products(shape, kind):
    rng = np.random.default_rng(4)
    ours = scale_by_muon()
    theirs = contrib.scale_by_muon(weight_dimension_numbers=lambda x: contrib.MuonDimensionNumbers(2, 1))
    state, their_state = ours.init(np.zeros(shape, np.complex64)), theirs.init(np.zeros(shape, np.complex64))
    for _ in range(3):
        g = complex_stack(rng, *shape)
        g = g if kind == "complex" else g.real
        update, state = ours.update(g, state)
        their_update, their_state = theirs.update(g, their_state)
        # Fifteen products of float32 matrices of 12 to 20 rows, with entries of order one, and slopes up to 3.4 each.
        np.testing.assert_allclose(update, 0.2 * max(shape[1:]) ** 0.5 * their_update, atol=1e-5)


def test_a_rotated_gradient_gives_the_rotated_update():
    g = complex_stack(np.random.default_rng(1), 3, 6, 9)
    np.testing.assert_allclose(one_update(1j * g), 1j * one_update(g), atol=1e-5)


def test_matrices_are_stacks_that_decay():
    shapes = {"stack": (2, 3, 4), "gains": (2, 3), "readout": (9, 4), "kernel": (2, 4, 3, 2, 2), "fixed": (2, 3, 4)}
    params = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()}
    decays = dict.fromkeys(shapes, True) | {"fixed": False}
    chosen = matrices_of_layers(params, decays)
    assert [name for name, matrix in chosen.items() if matrix] == ["stack"]


def test_of_the_rest_every_bit_is_adams():
    rng = np.random.default_rng(2)
    params = {"layers": complex_stack(rng, 2, 5, 7), "gain": rng.normal(size=5).astype(np.float32)}
    grads = {"layers": complex_stack(rng, 2, 5, 7), "gain": rng.normal(size=5).astype(np.float32)}

    def after(config):
        optimizer = langevin_adamw(config, lambda step: 0.01, seed=0)
        state = optimizer.init(params)
        for step in range(3):
            updates, state = optimizer.update(grads, state, params, step=jnp.int32(step))
        return updates

    muon, adam = after(CONFIG), after(dataclasses.replace(CONFIG, matrices="adam"))
    chex.assert_trees_all_equal(muon["gain"], adam["gain"])
    assert np.abs(muon["layers"] - adam["layers"]).max() > 1e-4


def test_a_bad_step_leaves_the_momentum_as_it_was():
    params = {"layers": complex_stack(np.random.default_rng(3), 2, 4, 4)}
    optimizer = make_optimizer(CONFIG, max_steps=10, seed=0)
    state = optimizer.init(params)
    good, bad = jax.tree.map(jnp.asarray, params), {"layers": params["layers"] * np.nan}
    _, state = optimizer.update(good, state, params, loss=jnp.float32(1), step=jnp.int32(0))
    updates, after = optimizer.update(bad, state, params, loss=jnp.float32(1), step=jnp.int32(1))
    chex.assert_trees_all_equal(after.inner, state.inner)
    np.testing.assert_array_equal(updates["layers"], 0)
    assert after.skipped == 1


@pytest.mark.parametrize("fields", [{"temperature": 1e-5}, {"thermostat": "posterior"}])
def test_noise_is_refused(fields):
    config = default()
    config.optimizer.update(matrices="muon", **fields)
    with pytest.raises(ConfigError, match=r"config.optimizer.matrices = muon takes no Langevin noise"):
        build(config)
