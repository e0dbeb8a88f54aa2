import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sem_jax.config import EncoderConfig, MixerConfig, ModelConfig, OptimizerConfig
from sem_jax.modules.model import abstract_model
from sem_jax.optim import add_weight_decay, langevin_adamw


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


# Arrays of two dimensions that multiply no vector: a bias of pairs, and the SSM's decay and phase of each state in each
# group, whose zero is a particular time constant rather than the absence of one.
NO_MATRICES = {"bias", "decay", "phase", "qk_bias"}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"mixer": MixerConfig(kind="fixed")},
        {"blocks": "mixers"},
        {"layout": "interleaved"},
        {"encoder": EncoderConfig(transport="row_softmax")},
    ],
    ids=["default", "fixed", "mixers", "interleaved", "plan"],
)
def test_of_a_model_exactly_the_matrices_decay(changes):
    """What the modules say of their parameters: two or more dimensions in a layer, and none of the names above."""
    parts = abstract_model(ModelConfig(vocab_size=7, **changes))
    decays = jax.tree_util.tree_leaves_with_path(parts.decays())
    leaves = jax.tree_util.tree_leaves_with_path(parts.params)
    assert [path for path, _ in decays] == [path for path, _ in leaves]
    for (path, decay), (_, leaf) in zip(decays, leaves, strict=True):
        group, name = (jax.tree_util.keystr(part, simple=True) for part in (path[:1], path[-1:]))
        is_stacked = group in ("mixers", "propagators")
        assert decay == (leaf.ndim - is_stacked >= 2 and name not in NO_MATRICES), jax.tree_util.keystr(path)


def test_of_a_model_with_a_plan_these_decay():
    decays = abstract_model(ModelConfig(vocab_size=7, encoder=EncoderConfig(transport="row_softmax"))).decays()
    marked = {
        jax.tree_util.keystr(path, simple=True, separator=".")
        for path, decay in jax.tree_util.tree_leaves_with_path(decays)
        if decay
    }
    assert marked == {
        "encoder.embedding", "encoder.codebook", "encoder.input_proj.weight", "encoder.sdr_to_hidden.weight",
        "mixers.in_proj.weight", "mixers.conv.kernel", "mixers.out_proj",
        "mixers.ssm.qk_proj", "mixers.ssm.rates.weight", "mixers.output_gate.weight", "readout.weight",
    }  # fmt: skip


def test_without_a_tree_of_marks_all_decay():
    params = {"gain": jnp.ones(3), "scalar": jnp.ones(())}
    transform = add_weight_decay(0.5, None, {})
    updates, _ = transform.update(jax.tree.map(jnp.zeros_like, params), transform.init(params), params)
    jax.tree.map(lambda u: np.testing.assert_array_equal(u, 0.5), updates)


@pytest.mark.parametrize("everything", [False, True])
def test_exactly_the_marked_leaves_shrink(params, everything):
    config = OptimizerConfig(weight_decay=0.1, decay_all=everything)
    optimizer = langevin_adamw(config, optax.constant_schedule(0.5), seed=0, decays=MATRICES)
    grads = jax.tree.map(jnp.zeros_like, params)
    updates, _ = jax.jit(optimizer.update)(grads, optimizer.init(params), params, step=0)
    shrunk = optax.apply_updates(params, updates)
    expected = jax.tree.map(lambda p, d: np.full_like(p, 0.95 if d or everything else 1.0), params, MATRICES)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), shrunk, expected)
