"""The way of a state dict to a model and back."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import config as small_config
from state_dicts import BLOCK, EDGES, FREQUENCY, OVERRIDES, D, G, K, L, M, N, P, S, V, differing, make_state_dict

from sem_jax.config import ConfigError
from sem_jax.interop import InteropError, differences, export_state_dict, import_state_dict
from sem_jax.modules.block import Context
from sem_jax.modules.model import init_model, scan_layers, split_model

pytestmark = pytest.mark.usefixtures("quick_compilation")

STATE = make_state_dict()
BUFFERS = {name for name in STATE if name.endswith(("edge_indices", "_sparse_idx_sym", "positional_phase"))}
PHASE = "encoder.positional_phase"
INDICES = "propagator.layers.0.hamiltonian.scales.0.edge_indices"
SYMMETRIC = "propagator.layers.0.hamiltonian.scales.0._sparse_idx_sym"


@functools.cache
def imported():
    return import_state_dict(STATE, **OVERRIDES)


def parts():
    return split_model(imported()[1])


def problems(state, **overrides):
    """The lines of the error that name an entry."""
    with pytest.raises(InteropError) as error:
        import_state_dict(state, **(OVERRIDES | overrides))
    return [line.split(maxsplit=1) for line in str(error.value).splitlines() if line.startswith("  ")]


def test_a_round_trip_keeps_every_bit_and_the_order_although_layers_have_graphs_of_unequal_size():
    _, model = imported()
    for exported in (export_state_dict(model), export_state_dict(parts())):
        assert differing(exported, STATE) == []
        assert list(exported) == list(STATE)


def test_signs_of_zeros_and_the_ends_of_the_range_survive():
    state = make_state_dict()
    ends = np.finfo(np.float32)
    for name in set(state) - BUFFERS:
        flat = state[name].reshape(-1)
        flat[:4] = np.array([-0.0, ends.max, ends.min, ends.smallest_subnormal], np.float32)[: flat.size]
    assert differing(export_state_dict(import_state_dict(state, **OVERRIDES)[1]), state) == []


def test_sizes_come_from_the_shapes_and_the_rest_from_the_originals_defaults():
    config, _ = imported()
    model = config.model
    assert (model.vocab_size, model.hidden_dim, model.num_layers, model.max_seq_length) == (V, D, L, S)
    encoder, mixer, propagator = model.encoder, model.mixer, model.propagator
    assert (encoder.sdr_candidates, encoder.cost_dim) == (M, P)
    assert (mixer.block_size, mixer.conv_width, mixer.num_groups, mixer.state_dim) == (BLOCK, K, G, N)
    assert propagator.num_edges == tuple(map(max, *EDGES))
    assert propagator.laplacian_sparsity == 2  # 7 edges at 8 nodes are 1.75 neighbours each
    assert (encoder.sinkhorn_epsilon, encoder.sinkhorn_max_iter, encoder.sinkhorn_tol) == (0.05, 50, 1e-3)
    assert (propagator.cayley_dt, config.optimizer.unitary_lambda) == (0.1, 0.1)
    assert (model.likelihood, propagator.solver, encoder.transport) == ("reference", "dense", "sequence_sinkhorn")
    assert differences(config) == []
    assert config.data.seq_length == S


def test_overrides_reach_their_fields():
    config, model = import_state_dict(
        STATE, sdr_sparsity=5, cayley_dt=0.2, sinkhorn_epsilon=0.1, sinkhorn_max_iter=7, sinkhorn_tol=1e-2,
        unitary_lambda=0, max_seq_length=6,
    )  # fmt: skip
    encoder = config.model.encoder
    assert (encoder.sdr_sparsity, encoder.sinkhorn_epsilon, encoder.sinkhorn_max_iter) == (5, 0.1, 7)
    assert (encoder.sinkhorn_tol, config.model.propagator.cayley_dt) == (1e-2, 0.2)
    assert (config.optimizer.unitary_lambda, config.model.max_seq_length, config.data.seq_length) == (0.0, 6, 6)
    np.testing.assert_array_equal(export_state_dict(model)[PHASE], STATE[PHASE][:6])


@pytest.mark.parametrize(
    ("overrides", "error", "message"),
    [
        ({"dt": 0.2}, InteropError, "dt cannot be overridden, only sdr_sparsity, cayley_dt"),
        ({"hidden_dim": 8}, InteropError, "hidden_dim cannot be overridden"),
        ({"sdr_sparsity": 32}, ConfigError, "sdr_sparsity = 32 must not exceed .*sdr_candidates = 6.*can be given"),
        ({"sdr_sparsity": 4, "cayley_dt": "fast"}, ConfigError, "cayley_dt = 'fast' must be of type float"),
        ({"sdr_sparsity": 4, "max_seq_length": 0}, ConfigError, "max_seq_length = 0 must be at least 1"),
    ],
)
def test_overrides_that_cannot_be_are_named(overrides, error, message):
    with pytest.raises(error, match=message):
        import_state_dict(STATE, **overrides)


def test_prefixes_of_compiled_modules_and_the_wrapper_are_taken_off():
    compiled = {f"_orig_mod.{name.replace('norm.', 'norm._orig_mod.')}": array for name, array in STATE.items()}
    for source in (compiled, {"model_state_dict": compiled, "step": 3}):
        assert differing(export_state_dict(import_state_dict(source, **OVERRIDES)[1]), STATE) == []
    with pytest.raises(InteropError, match=r"holds final_norm\.gamma twice"):
        import_state_dict(STATE | {"_orig_mod.final_norm.gamma": STATE["final_norm.gamma"]})


def test_arrays_of_every_library_are_taken():
    torch = pytest.importorskip("torch")
    tensors = {name: torch.from_numpy(array.copy()) for name, array in STATE.items()}
    weight = tensors["final_norm.gamma"]
    tensors["final_norm.gamma"] = torch.nn.Parameter(weight)
    arrays = {name: jnp.asarray(array) for name, array in STATE.items()}
    for source in (tensors, arrays):
        assert differing(export_state_dict(import_state_dict(source, **OVERRIDES)[1]), STATE) == []


def test_what_is_no_array_is_named():
    with pytest.raises(InteropError, match=r"the mapping holds a int under step; give the names"):
        import_state_dict(STATE | {"step": 3})


@pytest.mark.parametrize("dtype", [np.float16, jnp.bfloat16, np.float64])
def test_other_floats_become_float32(dtype):
    narrow = {name: array if name in BUFFERS - {PHASE} else array.astype(dtype) for name, array in STATE.items()}
    exported = export_state_dict(import_state_dict(narrow, **OVERRIDES)[1])
    expected = {name: a if name in BUFFERS - {PHASE} else a.astype(np.float32) for name, a in narrow.items()}
    # A phase in 16 bits does not tell its frequency; what its rounding allows is the formula's.
    expected[PHASE] = STATE[PHASE]
    assert differing(exported, expected) == []


def test_edge_lists_of_another_integer_type_and_without_their_symmetric_form_are_taken():
    state = {name: array for name, array in STATE.items() if not name.endswith("_sparse_idx_sym")}
    state[INDICES] = state[INDICES].astype(np.uint8)
    assert differing(export_state_dict(import_state_dict(state, **OVERRIDES)[1]), STATE) == []


@pytest.mark.parametrize("name", sorted(STATE.keys() - {n for n in STATE if n.endswith("_sparse_idx_sym")}))
def test_each_missing_entry_is_named_alone_with_its_shape(name):
    state = dict(STATE)
    shape = list(state.pop(name).shape)
    derived = {name.replace("edge_indices", "_sparse_idx_sym")} - {name}
    found = problems({n: a for n, a in state.items() if n not in derived})
    unknown = "[?, 8]" if name == PHASE else str(shape)  # nothing else tells the number of positions
    assert found == [["missing", f"{name} {unknown}"]]


@pytest.mark.parametrize("name", sorted(STATE.keys() - {PHASE, "encoder.embedding.weight"}))
def test_each_misshaped_entry_is_named_alone(name):
    wrong = np.concatenate([STATE[name].reshape(-1)] * 2)[: STATE[name].size + 1].reshape(1, -1)
    (found,) = problems(STATE | {name: wrong})
    assert found[0] == "misshaped"
    assert found[1].startswith(f"{name} {wrong.dtype}[1, {wrong.size}], expected")
    assert found[1].endswith(str(list(STATE[name].shape)))


def test_everything_that_does_not_fit_is_listed_at_once():
    state = make_state_dict()
    del state["final_norm.gamma"], state["mamba_layers.1.norm.gamma"]
    state |= {
        "encoder.cost.codebook": np.zeros((M, P + 1), np.float32),
        "mamba_layers.0.ssm.log_A_mag": np.zeros((G, N), np.int32),
        INDICES: STATE[INDICES].astype(np.float32),
        "teacher.weight": np.zeros((2, 3)),
        "mamba_layers.7.surprise": np.zeros(1),
    }
    assert problems(state) == [
        ["missing", f"mamba_layers.1.norm.gamma [{D}]"],
        ["missing", f"final_norm.gamma [{D}]"],
        ["misshaped", f"encoder.cost.codebook float32[{M}, {P + 1}], expected floating point numbers [{M}, {P}]"],
        ["misshaped", f"mamba_layers.0.ssm.log_A_mag int32[{G}, {N}], expected floating point numbers [{G}, {N}]"],
        ["misshaped", f"{INDICES} float32[2, 5], expected integers [2, 5]"],
        ["unexpected", "teacher.weight float64[2, 3]"],
        ["unexpected", "mamba_layers.7.surprise float64[1]"],
    ]
    with pytest.raises(InteropError, match=r"the mapping is not .*, 7 entries do not fit"):
        import_state_dict(state)


def test_a_missing_layer_is_listed_and_a_foreign_file_is_refused():
    found = problems({name: array for name, array in STATE.items() if not name.startswith("mamba_layers.0.")})
    assert len(found) == 20
    assert all(kind == "missing" and name.startswith("mamba_layers.0.") for kind, name in found)
    found = problems({"transformer.h.0.attn.weight": np.zeros((4, 4), np.float32)})
    assert ["unexpected", "transformer.h.0.attn.weight float32[4, 4]"] in found
    assert ["missing", "encoder.embedding.weight [?, ?]"] in found


def with_edge(column):
    changed = STATE[INDICES].copy()
    changed[:, 1] = column
    return {INDICES: changed, SYMMETRIC: np.concatenate([changed, changed[::-1]], axis=1)}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (with_edge([0, D]), f"{INDICES}: nodes 0..{D} are not all in 0..{D - 1}"),
        (with_edge([-1, 3]), f"{INDICES}: nodes -1..7 are not all in 0..{D - 1}"),
        (with_edge([3, 3]), f"{INDICES}: an edge joins a node to itself"),
        (
            {SYMMETRIC: np.roll(STATE[SYMMETRIC], 1, axis=0)[:, ::-1] // 2},
            f"{SYMMETRIC}: not the edges of edge_indices",
        ),
        ({PHASE: STATE[PHASE] + np.float32(0.01)}, f"{PHASE}: not position·frequency"),
    ],
)
def test_entries_of_the_right_form_that_cannot_be_are_named(changes, message):
    ((kind, text),) = problems(STATE | changes)
    assert kind == "impossible"
    assert text.startswith(message)


def test_other_rotation_frequencies_are_kept_and_used():
    faster = (np.float32(2) * FREQUENCY).astype(np.float32)
    state = STATE | {PHASE: np.arange(S, dtype=np.float32)[:, None] * faster}
    _, model = import_state_dict(state, **OVERRIDES)
    np.testing.assert_array_equal(export_state_dict(model)[PHASE], state[PHASE])
    tokens, position = np.zeros((1, 2), np.int32), np.array([[0, 1]], np.int32)

    def encode(model, position):
        return model.encoder(tokens, model.initial_state(1).encoder, Context(position))[0][0, -1]

    # One position at twice the frequency turns as far as two positions.
    ours, theirs = encode(model, position), encode(imported()[1], 2 * position)
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)


def laplacian(state, layer):
    """H = Σ_k softmax(w)_k (Deg_k − A_k) of the file's own numbers, in double precision."""
    prefix = f"propagator.layers.{layer}.hamiltonian"
    share = np.exp(state[f"{prefix}.scale_weights"].astype(float))
    total = np.zeros((D, D))
    for scale in range(3):
        weights = np.log1p(np.exp(state[f"{prefix}.scales.{scale}.edge_weights"].astype(float)))
        for (i, j), weight in zip(state[f"{prefix}.scales.{scale}.edge_indices"].T, weights, strict=True):
            flow = np.zeros(D)
            flow[[i, j]] = 1, -1
            total += share[scale] / share.sum() * weight * np.outer(flow, flow)
    return total


def test_every_edge_has_its_own_weight_and_scale_also_in_padded_layers():
    _, model = imported()

    def at_one_depth(blocks, x, _):
        return x, blocks["propagators"].hamiltonian().matrix

    _, matrices = scan_layers({"propagators": model.propagators}, 0.0, None, at_one_depth, "none")
    for layer in range(L):
        # Sums of at most 28·3 terms of size 1: a few roundings of 6e-8 of the largest entry, near 20.
        np.testing.assert_allclose(matrices[layer], laplacian(STATE, layer), atol=1e-5)


def test_the_export_is_linear():
    rng = np.random.default_rng(1)

    def draw(leaf):
        x = rng.integers(-8, 8, leaf.shape) + (1j * rng.integers(-8, 8, leaf.shape) if jnp.iscomplexobj(leaf) else 0)
        return x.astype(leaf.dtype)

    params = parts().params
    x, y = jax.tree.map(draw, params), jax.tree.map(draw, params)  # small whole numbers: every sum is exact
    combined = export_state_dict(jax.tree.map(lambda a, b: 2 * a - 3 * b, x, y))
    first, second = export_state_dict(x), export_state_dict(y)
    assert combined.keys() == STATE.keys() - BUFFERS
    for name, array in combined.items():
        np.testing.assert_array_equal(array, 2 * first[name] - 3 * second[name])


def test_a_conjugated_gradient_is_the_pair_of_derivatives():
    params = parts().params
    slope = jax.tree.map(lambda leaf: leaf[..., ::-1] if leaf.ndim else leaf, params)

    def loss(params):  # Re Σ conj(c)·p has ∂/∂Re = Re c and ∂/∂Im = Im c
        return sum(jnp.sum((jnp.conj(c) * p).real) for c, p in zip(*map(jax.tree.leaves, (slope, params)), strict=True))

    gradient = jax.tree.map(jnp.conj, jax.grad(loss)(params))
    assert differing(export_state_dict(gradient), export_state_dict(slope)) == []


def test_part_of_a_tree_yields_part_of_the_names():
    readout = {"readout": parts().params["readout"]}
    assert export_state_dict(readout).keys() == {
        "sampler.output_bias", "sampler.proj_real.weight", "sampler.proj_imag.weight",
    }  # fmt: skip
    assert export_state_dict({}) == {}


def test_exported_arrays_are_the_callers_own():
    exported = export_state_dict(imported()[1])
    for array in exported.values():
        array[...] = 0
    assert differing(export_state_dict(imported()[1]), STATE) == []


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"mixers": {"speed": np.zeros(2)}}, "the original has nothing like mixers/speed"),
        (3, "a int is not exported"),
        (
            {"mixers": {"norm_gamma": np.zeros((2, D))}, "propagators": {"alpha": np.zeros((3, D))}},
            r"have \[2, 3\] layers",
        ),
    ],
)
def test_what_is_no_models_tree_is_refused(tree, message):
    with pytest.raises(InteropError, match=message):
        export_state_dict(tree)


@pytest.mark.parametrize(
    ("transport", "absent"),
    [("row_softmax", set()), ("none", {"codebook", "input_proj.weight", "input_proj.bias", "weight", "bias"})],
)
def test_default_models_are_exported_with_the_names_that_they_have(transport, absent):
    config = small_config(
        model__vocab_size=V, model__encoder__transport=transport, model__likelihood="born", model__mixer__kind="fixed"
    )
    exported = export_state_dict(init_model(config.model, 0))
    original = {name for name in STATE if ".1." not in name.replace("scales.1.", "")}
    assert {name.removeprefix("encoder.").removeprefix("cost.").removeprefix("sdr_to_hidden.")
            for name in original - exported.keys()} == absent  # fmt: skip
    assert exported.keys() <= original
    assert differences(config) == [
        "config.model.likelihood = born",
        f"config.model.encoder.transport = {transport}",
        "config.model.encoder.embedding_skip = True",
        "config.model.mixer.clamp_interval = 0",
        "config.model.propagator.kerr_saturation = 0.1",
    ]


def test_a_model_without_the_position_phase_is_exported_without_it_and_told_as_a_difference():
    config = small_config(model__vocab_size=V, model__encoder__position_phase=False, model__mixer__kind="fixed")
    assert PHASE not in export_state_dict(init_model(config.model, 0))
    assert "config.model.encoder.position_phase = False" in differences(config)


def test_a_selective_mixer_has_no_place_in_the_original():
    config = small_config(model__vocab_size=V, model__mixer__kind="selective")
    assert "config.model.mixer.kind = selective" in differences(config)
    with pytest.raises(InteropError, match=r"nothing like .*mixers/ssm/qk_proj.*mixer\.kind = fixed"):
        export_state_dict(init_model(config.model, 0))


def test_blocks_and_layout_of_another_model_are_told_as_differences():
    config = small_config(
        model__vocab_size=V,
        model__layout="interleaved",
        model__blocks="mixers",
        model__likelihood="born",
        model__mixer__kind="fixed",
    )
    assert differences(config)[:2] == ["config.model.blocks = mixers", "config.model.layout = interleaved"]
    assert not any(name.startswith("propagator") for name in export_state_dict(init_model(config.model, 0)))
