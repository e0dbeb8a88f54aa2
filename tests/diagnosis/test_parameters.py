"""Gradient and noise of each component's parameters, on a small model."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import config

from sem_jax.diagnosis.parameters import WHOLE, component_of, noise_and_update, parameter_stats
from sem_jax.modules.model import abstract_model
from sem_jax.training.state import init_state, optimizer_of

pytestmark = pytest.mark.usefixtures("quick_compilation")

FORM = {
    "model__vocab_size": 5,
    "model__num_layers": 2,
    "model__blocks": "mixers",  # fewer leaves: each has its noise, which takes long to compile
    "model__encoder__transport": "none",
}
CONFIG = config(**FORM)


@functools.cache
def fresh():
    """(state of a model, a gradient)."""
    rng = np.random.default_rng(0)

    def draw(leaf):
        x = rng.normal(size=leaf.shape) + (1j * rng.normal(size=leaf.shape) if jnp.iscomplexobj(leaf) else 0)
        return jnp.asarray(x, leaf.dtype)

    state = init_state(CONFIG)
    return state, jax.tree.map(draw, state.params)


@pytest.mark.slow
def test_noise_and_update_add_up_to_the_optimizers_own_step():
    cfg = config(**FORM, optimizer__temperature=10.0, optimizer__noise_cap=50.0)
    state, gradients = fresh()

    @jax.jit
    def both(state, gradients):
        optimizer, step = optimizer_of(cfg, state.model), jnp.int32(cfg.optimizer.warmup_steps)
        own, _ = optimizer.update(gradients, state.opt_state, state.params, loss=jnp.float32(1), step=step)
        return noise_and_update(cfg, state, gradients), own

    (noise, update), own = both(state, gradients)
    # Noise is a difference of steps of up to some 200η = 2, which are rounded.
    near = functools.partial(np.testing.assert_allclose, rtol=0, atol=4 * np.finfo(np.float32).eps)
    jax.tree.map(lambda a, b, c: near(a + b, c), noise, update, own)


def test_parameters_are_counted_once_and_by_layer():
    state, gradients = fresh()
    readout = state.params["readout"]
    params = state.params | {"readout": readout | {"bias": readout["bias"].at[2].set(jnp.inf)}}
    stats = parameter_stats(CONFIG, state.replace(params=params), gradients)
    mixer = ("norm", "in_proj", "conv", "ssm", "output_gate", "out_proj", "residual")
    assert set(stats) == {
        "encoder.embedding", "head.final_norm", "head.readout", WHOLE,
        *(f"mixers.{layer}.{part}" for layer in range(2) for part in mixer),
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
    assert component_of(abstract_model(config(model__vocab_size=5).model).merge(), keys, 1) == name
