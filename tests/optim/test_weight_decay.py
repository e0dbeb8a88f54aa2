import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sem_jax.config import ModelConfig, OptimizerConfig
from sem_jax.modules.model import abstract_model
from sem_jax.optim import decay_all, langevin_adamw, matrices_only


@pytest.fixture
def params():
    """Three stacked layers in both groups, single leaves elsewhere."""
    return {
        "encoder": {"embedding": jnp.ones((7, 4)), "bias": jnp.ones(4)},
        "mixers": {
            "norm": {"gamma": jnp.ones((3, 4))},
            "rho": jnp.ones(3),
            "out_proj": jnp.ones((3, 4, 4), jnp.complex64),
            "conv": {"kernel": jnp.ones((3, 4, 2, 2)), "bias": jnp.ones((3, 4, 2))},
            "ssm": {"decay": jnp.ones((3, 2, 5)), "phase": jnp.ones((3, 2, 5)), "in_proj": jnp.ones((3, 5, 2))},
            "spinor": jnp.ones((3, 2, 2, 2), jnp.complex64),
        },
        "propagators": {"alpha": jnp.ones((3, 4))},
        "readout": {"weight": jnp.ones((7, 4), jnp.complex64), "mixers": jnp.ones((3, 4)), "beta": jnp.ones(7)},
    }


MATRICES = {
    "encoder": {"embedding": True, "bias": False},
    "mixers": {
        "norm": {"gamma": False},
        "rho": False,
        "out_proj": True,
        "conv": {"kernel": True, "bias": False},
        "ssm": {"decay": False, "phase": False, "in_proj": True},
        "spinor": True,
    },
    "propagators": {"alpha": False},
    "readout": {"weight": True, "mixers": True, "beta": False},
}


def test_neither_the_layer_axis_nor_a_table_of_scalars_makes_a_matrix(params):
    assert matrices_only(params) == MATRICES


def test_a_tree_without_keys_has_no_layer_axis():
    assert matrices_only(jnp.ones((2, 2))) is True
    assert matrices_only(jnp.ones(2)) is False


def test_of_a_model_exactly_the_maps_decay():
    decays = matrices_only(abstract_model(ModelConfig(vocab_size=7)).params)
    marked = {
        jax.tree_util.keystr(path, simple=True, separator=".")
        for path, decay in jax.tree_util.tree_leaves_with_path(decays)
        if decay
    }
    assert marked == {
        "encoder.embedding", "encoder.codebook", "encoder.input_proj.weight", "encoder.sdr_to_hidden.weight",
        "mixers.spinor_gate.rotation", "mixers.spinor_gate.gate_proj.weight", "mixers.conv.kernel", "mixers.out_proj",
        "mixers.ssm.in_proj", "mixers.ssm.out_proj", "mixers.ssm.dt_proj.weight", "readout.weight",
    }  # fmt: skip


@pytest.mark.parametrize("everything", [False, True])
def test_exactly_the_marked_leaves_shrink(params, everything):
    config = OptimizerConfig(weight_decay=0.1, decay_all=everything)
    optimizer = langevin_adamw(config, optax.constant_schedule(0.5), seed=0)
    grads = jax.tree.map(jnp.zeros_like, params)
    updates, _ = jax.jit(optimizer.update)(grads, optimizer.init(params), params, step=0)
    shrunk = optax.apply_updates(params, updates)
    decays = decay_all(params) if everything else MATRICES
    expected = jax.tree.map(lambda p, d: np.full_like(p, 0.95 if d else 1.0), params, decays)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), shrunk, expected)
