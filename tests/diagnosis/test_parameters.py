"""Gradient and noise of each component's parameters, on a tree of a few leaves."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import config

from sem_jax.diagnosis.parameters import WHOLE, component_of, noise_and_update, parameter_stats
from sem_jax.optim import make_optimizer
from sem_jax.training.state import TrainState


def fresh(cfg):
    """(state of a tree with layers and complex leaves, a gradient)."""
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(2, 4, 4)) + 1j * rng.normal(size=(2, 4, 4))
    params = {
        "mixers": {"out_proj": jnp.asarray(weight, jnp.complex64), "norm_gamma": jnp.ones((2, 4))},
        "readout": {"bias": jnp.zeros(5)},
    }
    gradients = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), leaf.dtype), params)
    optimizer = make_optimizer(cfg.optimizer, cfg.training.max_steps, cfg.training.seed)
    return TrainState(jnp.int32(0), params, {}, optimizer.init(params), None), gradients


def test_noise_and_update_add_up_to_the_optimizers_own_step():
    cfg = config(optimizer__temperature=10.0, optimizer__noise_cap=50.0)
    state, gradients = fresh(cfg)
    noise, update = jax.jit(noise_and_update, static_argnums=0)(cfg, state, gradients)
    optimizer = make_optimizer(cfg.optimizer, cfg.training.max_steps, cfg.training.seed)
    step = jnp.int32(cfg.optimizer.warmup_steps)
    own, _ = jax.jit(optimizer.update)(gradients, state.opt_state, state.params, loss=jnp.float32(1), step=step)
    # Noise is a difference of steps of up to some 200η = 2, which are rounded.
    near = functools.partial(np.testing.assert_allclose, rtol=0, atol=4 * np.finfo(np.float32).eps)
    jax.tree.map(lambda a, b, c: near(a + b, c), noise, update, own)


def test_parameters_are_counted_once_and_by_layer():
    cfg = config()
    state, gradients = fresh(cfg)
    params = state.params | {"readout": {"bias": jnp.zeros(5).at[2].set(jnp.inf)}}
    stats = parameter_stats(cfg, state._replace(params=params), gradients)
    assert set(stats) == {
        "mixers.0.out_proj", "mixers.1.out_proj", "mixers.0.norm", "mixers.1.norm", "head.readout", WHOLE,
    }  # fmt: skip
    norm = np.linalg.norm(np.asarray(gradients["mixers"]["out_proj"])[1])
    assert stats["mixers.1.out_proj"].gradient_norm == pytest.approx(norm, rel=1e-6)
    total = np.sqrt(sum(np.linalg.norm(leaf) ** 2 for leaf in jax.tree.leaves(gradients)))
    assert stats[WHOLE].gradient_norm == pytest.approx(total, rel=1e-6)
    assert {name: s.bad for name, s in stats.items() if s.bad} == {"head.readout": 1, WHOLE: 1}
    assert stats["mixers.0.norm"].noise_to_update == 0  # at T = 0


@pytest.mark.parametrize(
    ("keys", "name"),
    [
        (["mixers", "ssm", "dt_proj", "weight"], "mixers.1.ssm"),
        (["propagators", "edge_weights", "2"], "propagators.1.cayley"),
        (["encoder", "codebook"], "encoder.plan"),
        (["final_gamma"], "head.final_norm"),
    ],
)
def test_a_parameter_belongs_to_the_part_that_uses_it(keys, name):
    assert component_of(keys, 1) == name
