"""Kinds of blocks and their layouts: the model is its blocks applied one after the other, and nothing besides."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from small import primitives
from small_models import random_parts, small_config, start_of

from sem_jax.config import ConfigError, EncoderConfig, MixerConfig, PropagatorConfig
from sem_jax.core.complex_ops import complex_matmul, rms_norm
from sem_jax.modules.block import Block, Context
from sem_jax.modules.blocks import BLOCKS, block_kinds
from sem_jax.modules.model import abstract_model, document_positions
from sem_jax.modules.probe import Observer

BATCH, LENGTH = 2, 6
ROUNDING = 1e-12  # the same sums in another order

# (kind, depth) in the order of the pass.
ORDERS = {
    ("mixers,propagators", "mixers_first"): [("mixers", 0), ("mixers", 1), ("propagators", 0), ("propagators", 1)],
    ("mixers,propagators", "interleaved"): [("mixers", 0), ("propagators", 0), ("mixers", 1), ("propagators", 1)],
    ("propagators,mixers", "interleaved"): [("propagators", 0), ("mixers", 0), ("propagators", 1), ("mixers", 1)],
}

x64 = pytest.mark.usefixtures("x64")
pytestmark = pytest.mark.usefixtures("quick_compilation")


def inputs():
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 12, (BATCH, LENGTH)).astype(np.int32)
    return tokens, rng.random((BATCH, LENGTH)) < 0.2


def layer(stacked, index):
    graphdef, variables = nnx.split(stacked)
    return nnx.merge(graphdef, jax.tree.map(lambda x: x[index], variables))


def by_hand(model, tokens, state, resets, order):
    """(ψ, states after the tokens by kind and depth) of the blocks one after the other."""
    context = Context(document_positions(state.position, tokens.shape[1], resets))
    x, _ = model.encoder(tokens, state.encoder, context)
    after = {}
    for kind, depth in order:
        past = jax.tree.map(lambda memory, depth=depth: memory[depth], state.blocks[kind])
        x, after[kind, depth], _ = layer(getattr(model, kind), depth)(x, past, context)
    return rms_norm(x, model.final_gamma[...]), after


@functools.cache
def both_ways(blocks, layout):
    """((ψ, state), gradient) of the model, and of its blocks by hand."""
    parts = random_parts(small_config("none", blocks=blocks, layout=layout))
    tokens, resets = inputs()
    start = start_of(parts, BATCH)
    rng = np.random.default_rng(1)
    cotangent = rng.normal(size=(BATCH, LENGTH, 8)) + 1j * rng.normal(size=(BATCH, LENGTH, 8))

    def projected(run):
        def loss(params):
            psi, after = run(parts.replace(params=params).merge())
            return jnp.sum((psi * cotangent).real), (psi, after)

        return jax.grad(loss, has_aux=True)

    def whole(model):
        psi, after, _ = model(tokens, start, resets)
        return psi, after.blocks

    model = projected(whole)
    hand = projected(lambda model: by_hand(model, tokens, start, resets, ORDERS[blocks, layout]))
    return jax.jit(lambda params: (model(params), hand(params)))(parts.params)


@pytest.mark.parametrize(
    ("blocks", "layout"),
    [pytest.param(*order, marks=[pytest.mark.slow] * (order[1] == "mixers_first")) for order in ORDERS],
)
@x64
def test_the_model_is_its_blocks_applied_in_the_order_of_the_layout(blocks, layout):
    (gradient, (psi, after)), (gradient_by_hand, (psi_by_hand, after_by_hand)) = both_ways(blocks, layout)
    np.testing.assert_allclose(psi, psi_by_hand, atol=ROUNDING)
    for (kind, depth), memory in after_by_hand.items():
        ours = jax.tree.map(lambda x, depth=depth: x[depth], after[kind])
        jax.tree.map(lambda a, e: np.testing.assert_allclose(a, e, atol=ROUNDING), ours, memory)
    for a, e in zip(jax.tree.leaves(gradient), jax.tree.leaves(gradient_by_hand), strict=True):
        np.testing.assert_allclose(a, e, atol=ROUNDING * max(1, np.abs(e).max()))


@x64
def test_the_order_matters():
    waves = [both_ways(*form)[0][1][0] for form in ORDERS]
    for first, second in ((0, 1), (0, 2), (1, 2)):
        assert np.abs(waves[first] - waves[second]).max() > 1e-3


def test_the_names_of_the_leaves_are_those_of_the_checkpoints():
    def names_of(parts):
        leaves = jax.tree_util.tree_leaves_with_path((parts.params, parts.buffers))
        return {jax.tree_util.keystr(path[1:], simple=True, separator="/") for path, _ in leaves}

    expected = {
        "encoder/embedding", "encoder/codebook", "encoder/input_proj/weight", "encoder/input_proj/bias",
        "encoder/sdr_to_hidden/weight", "encoder/sdr_to_hidden/bias", "encoder/frequency",
        "mixers/norm_gamma", "mixers/spinor_gate/rotation", "mixers/spinor_gate/gate_proj/weight",
        "mixers/spinor_gate/gate_proj/bias", "mixers/conv/kernel", "mixers/conv/bias", "mixers/activation_threshold",
        "mixers/ssm/decay", "mixers/ssm/phase", "mixers/ssm/in_proj", "mixers/ssm/out_proj",
        "mixers/ssm/dt_proj/weight", "mixers/ssm/dt_proj/bias", "mixers/out_proj", "mixers/output_scale",
        "mixers/residual_scale",
        "propagators/alpha", "propagators/scale_weights",
        *(f"propagators/{name}/{scale}" for name in ("edges", "edge_weights") for scale in range(3)),
        "final_gamma", "readout/weight", "readout/bias",
    }  # fmt: skip
    for layout in ("mixers_first", "interleaved"):
        assert names_of(abstract_model(small_config("row_softmax", layout=layout))) == expected
    mixers = names_of(abstract_model(small_config("row_softmax", blocks="mixers")))
    assert mixers == {name for name in expected if not name.startswith("propagators/")}


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("mixers,propagator", r"config\.model\.blocks names 'propagator', which is none of mixers, propagators"),
        ("", r"names ''"),
        ("mixers,", r"names ''"),
        ("mixers,mixers", r"config\.model\.blocks = mixers,mixers names a kind of layer twice"),
    ],
)
def test_unknown_and_doubled_names_are_refused(names, message):
    with pytest.raises(ConfigError, match=message):
        abstract_model(small_config("none", blocks=names))


def test_kinds_come_in_the_order_of_their_names():
    assert list(block_kinds("propagators, mixers")) == ["propagators", "mixers"]


def test_the_protocol_itself_is_no_block(monkeypatch):
    monkeypatch.setitem(BLOCKS, "blocks", Block)
    with pytest.raises(TypeError, match="Block is a protocol"):
        abstract_model(small_config("none", blocks="blocks"))


# What an ordinary pass does not contain


def program(observer=None, **changes):
    parts = abstract_model(small_config("row_softmax", **changes))
    tokens, resets = inputs()
    return jax.make_jaxpr(lambda parts: parts.merge()(tokens, resets=resets, observer=observer)[0])(parts)


class Renaming(Observer):
    """Hands out probes that return the value, and keeps nothing."""

    def __init__(self):
        self.names = []

    def probe(self, slots):
        def see(name, value):
            self.names.append(name)
            return value

        return see


def test_an_ordinary_pass_has_nothing_of_the_observer():
    watched = Renaming()
    assert list(primitives(program())) == list(primitives(program(watched)))
    model = abstract_model(small_config("row_softmax")).merge()
    shown = [part for parts in model.parts.values() for part in parts]
    # All parts are shown, in their order, except the readout, which is not part of the wave function.
    assert list(dict.fromkeys(watched.names)) == [part for part in shown if part != "readout"]


def test_a_layer_contains_its_equations_and_no_probe():
    """The program of a mixer is that of its parts put together without any probe."""
    model = abstract_model(small_config("none")).merge()
    graphdef, variables = nnx.split(model.mixers)
    single = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), variables)
    past = jax.eval_shape(lambda v: nnx.merge(graphdef, v).initial_state(BATCH), single)
    wave = jax.ShapeDtypeStruct((BATCH, LENGTH, 8), jnp.complex64)
    position = np.zeros((BATCH, LENGTH), np.int32)

    def block(variables, x, past):
        return nnx.merge(graphdef, variables)(x, past, Context(position))[:2]

    def alone(variables, x, past):
        mixer = nnx.merge(graphdef, variables)
        z, taps = mixer.conv(mixer.spinor_gate(mixer.norm(x)), past.taps, position)
        z, ssm = mixer.ssm(mixer.amplitude_gate(z), past.ssm, position)
        return mixer.residual(x, complex_matmul(z, mixer.out_proj[...])), (taps, ssm)

    programs = [list(primitives(jax.make_jaxpr(f)(single, wave, past))) for f in (block, alone)]
    assert programs[0] == programs[1]


# What the parts cost


def costs_of(tokens, **changes):
    return abstract_model(small_config("row_softmax", **changes)).merge().costs(tokens)


@pytest.mark.parametrize("changes", [{}, {"layout": "interleaved"}, {"blocks": "mixers"}, {"likelihood": "reference"}])
def test_every_component_of_a_model_has_its_costs(changes):
    model = abstract_model(small_config("row_softmax", **changes)).merge()
    named = {name.partition("/")[0] for name in model.costs(64)}
    layers = {part for block in model.blocks.values() for part in block.PARTS}
    assert named == {"encoder", "readout", *layers - {"residual"}}  # the residual is counted with what it adds


@pytest.mark.parametrize("likelihood", ["born", "reference"])
def test_costs_grow_with_the_tokens(likelihood):
    small, large = (costs_of(tokens, likelihood=likelihood) for tokens in (64, 128))
    of_parameters = {"cayley/unitary", "readout/gram"}
    for name, cost in small.items():
        assert min(cost) >= 0
        if name in of_parameters:
            assert large[name] == cost  # formed once, whatever is multiplied by it
        else:
            assert (large[name].training, large[name].forward) == (2 * cost.training, 2 * cost.forward), name
            assert large[name].traffic > cost.traffic or cost.traffic == 0, name
    arithmetic = {name for name, cost in small.items() if cost.training}
    assert {"encoder", "spinor_gate", "conv", "ssm/scan", "out_proj", "cayley/step"} < arithmetic


def test_costs_of_layers_grow_with_the_depth_and_others_do_not():
    one, three = (costs_of(64, num_layers=depth) for depth in (1, 3))
    for name, cost in one.items():
        of_layers = not name.startswith(("encoder", "readout"))
        assert three[name] == cost.times(3 if of_layers else 1), name


def test_a_plan_and_a_wider_model_cost_more():
    assert abstract_model(small_config("none")).merge().costs(64)["encoder"].training == 0
    changes = {
        "encoder": EncoderConfig(sdr_candidates=6, cost_dim=4),
        "mixer": MixerConfig(block_size=4, num_groups=2, state_dim=3),
        "propagator": PropagatorConfig(laplacian_sparsity=2),
    }
    narrow, wide = (costs_of(64, hidden_dim=dim, **changes) for dim in (8, 16))
    assert all(wide[name].training >= cost.training for name, cost in narrow.items())
    assert wide["out_proj"].forward == 4 * narrow["out_proj"].forward
