"""What the whole model promises, whatever its parameters: causality, independence, one code path, documents apart."""

from __future__ import annotations

import collections
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small import primitives
from small_models import CAUSAL_TRANSPORTS, random_parts, small_config, start_of

from sem_jax.config import MixerConfig
from sem_jax.modules.model import ModelParts, count_parameters, document_positions, init_model

BATCH, LENGTH, VOCAB = 2, 10, 12
SEEDS = st.integers(0, 2**31 - 1)
# Each transport with a solver and a layout, so that all of them are probed. The loose tolerance of CG lets tokens stop
# at different iterations: if they did not stop for themselves, the tests of independence would see it.
SOLVER = {"none": "chebyshev", "row_softmax": "dense", "causal_sinkhorn": "cg"}
LAYOUT = {"none": "interleaved", "row_softmax": "mixers_first", "causal_sinkhorn": "interleaved"}

pytestmark = pytest.mark.usefixtures("x64", "quick_compilation")
causal_transports = pytest.mark.parametrize("transport", CAUSAL_TRANSPORTS)


@functools.cache
def parts_of(transport: str, **model) -> ModelParts:
    layout = LAYOUT.get(transport, "mixers_first")
    return random_parts(small_config(transport, SOLVER.get(transport, "dense"), layout=layout, **model))


@functools.cache
def compiled_probe(transport: str, **model):
    """(params, tokens, resets, state, cotangent of ψ) -> (gradients, (ψ, state)), compiled once."""
    parts = parts_of(transport, **model)

    def loss(params, tokens, resets, state, cotangent):
        psi, state, _ = parts.replace(params=params).merge()(tokens, state, resets)
        return jnp.sum((psi * cotangent).real), (psi, state)

    return jax.jit(jax.grad(loss, has_aux=True))


def probe(transport, tokens, resets, cotangent):
    parts = parts_of(transport)
    state = start_of(parts, len(tokens))
    return compiled_probe(transport)(parts.params, tokens, resets, state, cotangent)


def forward(transport, tokens, resets):
    """(ψ, state after the last token) of a full pass."""
    dim = parts_of(transport).params["final_gamma"].shape[0]
    _, outputs = probe(transport, tokens, resets, np.zeros((*tokens.shape, dim), complex))
    return outputs


@functools.cache
def compiled_continuation(transport: str):
    """(tokens, resets, state) -> (ψ, state), compiled once a shape."""
    parts = parts_of(transport)
    return jax.jit(lambda tokens, resets, state: parts.merge()(tokens, state, resets)[:2])


def random_tokens(rng):
    """Rows without a repetition, so that a row of the embedding stands for a position."""
    return np.stack([rng.permutation(VOCAB)[:LENGTH] for _ in range(BATCH)]).astype(np.int32)


def random_resets(rng, share=0.2):
    return rng.random((BATCH, LENGTH)) < share


def documents(resets):
    return np.cumsum(resets, axis=1)


def sensitivity(transport, tokens, resets, t):
    """How much ψ at position t of the first row moves with the embedding of each of that row's tokens, [S]."""
    dim = parts_of(transport).params["final_gamma"].shape[0]
    cotangent = np.zeros((BATCH, LENGTH, dim), complex)
    cotangent[0, t] = np.random.default_rng(t).normal(size=dim) + 0.5j
    gradients, _ = probe(transport, tokens, resets, cotangent)
    return np.linalg.norm(gradients["encoder"]["embedding"], axis=-1)[tokens[0]]


@causal_transports
@pytest.mark.parametrize("new_documents", [(), (3, 7)])
def test_a_position_has_gradients_to_its_own_past_and_to_nothing_else(transport, new_documents):
    tokens = random_tokens(np.random.default_rng(0))
    resets = np.zeros((BATCH, LENGTH), bool)
    resets[:, list(new_documents)] = True
    document = documents(resets)[0]
    for t in range(LENGTH):
        past = (np.arange(LENGTH) <= t) & (document == document[t])
        np.testing.assert_array_equal(sensitivity(transport, tokens, resets, t) != 0, past)


def test_the_gradient_probe_sees_the_future_in_the_sinkhorn_plan_of_a_sequence():
    tokens = random_tokens(np.random.default_rng(0))
    resets = np.zeros((BATCH, LENGTH), bool)
    for t in (0, LENGTH // 2, LENGTH - 2):
        assert np.all(sensitivity("sequence_sinkhorn", tokens, resets, t) > 1e-6)


def change_after(rng, tokens, resets, t):
    """Other tokens and other document starts after position t."""
    other_tokens, other_resets = tokens.copy(), resets.copy()
    other_tokens[:, t + 1 :] = random_tokens(rng)[:, t + 1 :]
    other_resets[:, t + 1 :] = random_resets(rng)[:, t + 1 :]
    return other_tokens, other_resets


@causal_transports
@given(seed=SEEDS, t=st.integers(0, LENGTH - 2))
def test_a_changed_future_changes_no_bit_of_the_past(transport, seed, t):
    rng = np.random.default_rng(seed)
    tokens, resets = random_tokens(rng), random_resets(rng)
    other_tokens, other_resets = change_after(rng, tokens, resets, t)
    before, _ = forward(transport, tokens, resets)
    after, _ = forward(transport, other_tokens, other_resets)
    np.testing.assert_array_equal(before[:, : t + 1], after[:, : t + 1])
    changed = tokens[:, t + 1] != other_tokens[:, t + 1]
    assert np.all(np.any(before[changed, t + 1] != after[changed, t + 1], axis=-1))


def test_the_perturbation_probe_sees_the_future_in_the_sinkhorn_plan_of_a_sequence():
    rng = np.random.default_rng(0)
    tokens, resets = random_tokens(rng), np.zeros((BATCH, LENGTH), bool)
    other_tokens, _ = change_after(rng, tokens, resets, LENGTH - 3)
    before, _ = forward("sequence_sinkhorn", tokens, resets)
    after, _ = forward("sequence_sinkhorn", other_tokens, resets)
    assert np.all(np.linalg.norm(before - after, axis=-1) > 1e-4)


@causal_transports
@given(seed=SEEDS)
def test_batch_mates_change_no_bit(transport, seed):
    rng = np.random.default_rng(seed)
    tokens, resets = random_tokens(rng), random_resets(rng)
    other_tokens, other_resets = random_tokens(rng), random_resets(rng)
    other_tokens[0], other_resets[0] = tokens[0], resets[0]
    psi, _ = forward(transport, tokens, resets)
    other, _ = forward(transport, other_tokens, other_resets)
    np.testing.assert_array_equal(psi[0], other[0])


# The same sums in another order, through four layers that neither shrink nor blow up: a few hundred roundings of 1e-16.
ROUNDING = 1e-12


def test_a_sequence_alone_is_the_same_sequence_in_a_batch():
    rng = np.random.default_rng(0)
    tokens, resets = random_tokens(rng), random_resets(rng)
    together, _ = forward("causal_sinkhorn", tokens, resets)
    state = start_of(parts_of("causal_sinkhorn"), 1)
    alone, _ = compiled_continuation("causal_sinkhorn")(tokens[:1], resets[:1], state)
    np.testing.assert_allclose(alone[0], together[0], atol=ROUNDING)


def continue_in_pieces(transport, tokens, resets, lengths):
    """ψ and the last state of a sequence read piece by piece."""
    state, pieces, start = start_of(parts_of(transport), BATCH), [], 0
    for length in lengths:
        piece = np.s_[:, start : start + length]
        psi, state = compiled_continuation(transport)(tokens[piece], resets[piece], state)
        pieces.append(psi)
        start += length
    return np.concatenate(pieces, axis=1), state


def assert_states_agree(actual, expected):
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, e, atol=ROUNDING)


@causal_transports
def test_decoding_token_by_token_is_the_full_pass_at_every_position(transport):
    rng = np.random.default_rng(0)
    tokens, resets = random_tokens(rng), random_resets(rng)
    assert resets[:, 1:].any()
    psi, state = forward(transport, tokens, resets)
    decoded, last_state = continue_in_pieces(transport, tokens, resets, [1] * LENGTH)
    np.testing.assert_allclose(decoded, psi, atol=ROUNDING)
    assert_states_agree(last_state, state)


@st.composite
def compositions(draw, total=LENGTH, parts=(1, 2, 4)):
    """Lengths that add up to `total`."""
    lengths = []
    while total > 0:
        lengths.append(draw(st.sampled_from([part for part in parts if part <= total])))
        total -= lengths[-1]
    return lengths


@given(seed=SEEDS, lengths=compositions())
def test_the_state_may_be_handed_over_anywhere(seed, lengths):
    rng = np.random.default_rng(seed)
    tokens, resets = random_tokens(rng), random_resets(rng)
    psi, state = forward("causal_sinkhorn", tokens, resets)
    in_pieces, last_state = continue_in_pieces("causal_sinkhorn", tokens, resets, lengths)
    np.testing.assert_allclose(in_pieces, psi, atol=ROUNDING)
    assert_states_agree(last_state, state)


@causal_transports
@given(seed=SEEDS)
def test_packed_documents_are_the_documents_run_apart(transport, seed):
    rng = np.random.default_rng(seed)
    tokens, resets = random_tokens(rng), random_resets(rng, share=0.3)
    packed, _ = forward(transport, tokens, resets)
    starts = [0, *(np.flatnonzero(resets[0, 1:]) + 1), LENGTH]
    for start, end in itertools.pairwise(starts):
        alone = random_tokens(rng)  # whatever follows the document
        alone[0, : end - start] = tokens[0, start:end]
        psi, _ = forward(transport, alone, np.zeros((BATCH, LENGTH), bool))
        np.testing.assert_allclose(psi[0, : end - start], packed[0, start:end], atol=ROUNDING)


def test_what_is_recomputed():
    """The backward pass of whole layers repeats products and exponentials, the elementwise one exponentials alone."""
    names = {}
    for remat in ("none", "elementwise", "layers"):
        parts = random_parts(small_config("row_softmax", remat=remat))

        def loss(params, parts=parts):
            psi, _, _ = parts.replace(params=params).merge()(jnp.zeros((BATCH, LENGTH), jnp.int32))
            return jnp.sum(jnp.square(psi.real))

        names[remat] = collections.Counter(primitives(jax.make_jaxpr(jax.grad(loss))(parts.params)))
    products, exponentials = ([names[remat][name] for remat in names] for name in ("dot_general", "exp"))
    complex_products = products[1] - products[0]
    assert 0 <= complex_products < products[2] - products[0]
    assert exponentials[0] < exponentials[1] == exponentials[2]


@pytest.mark.parametrize(("layout", "loops"), [("mixers_first", 2), ("interleaved", 1)])
def test_layers_without_a_loop(layout, loops):
    def program(scan_layers):
        model = random_parts(small_config("row_softmax", scan_layers=scan_layers, layout=layout)).merge()
        return jax.jit(lambda tokens: model(tokens)[0]).lower(jnp.zeros((1, 4), jnp.int32)).as_text()

    scanned, unrolled = (program(scan_layers).count("stablehlo.while") for scan_layers in (True, False))
    assert scanned - unrolled == loops


@pytest.mark.parametrize("changes", [{"remat": "layers"}, {"remat": "elementwise"}, {"scan_layers": False}], ids=str)
def test_how_the_layers_are_compiled_changes_no_gradient(changes):
    rng = np.random.default_rng(0)
    tokens, resets = random_tokens(rng), random_resets(rng)
    cotangent = rng.normal(size=(BATCH, LENGTH, 8)) + 1j * rng.normal(size=(BATCH, LENGTH, 8))
    kept, changed = parts_of("row_softmax"), parts_of("row_softmax", **changes)
    assert kept.merge().config != changed.merge().config
    inputs = (kept.params, tokens, resets, start_of(kept, BATCH), cotangent)
    gradients, (psi, _) = compiled_probe("row_softmax")(*inputs)
    again, (psi_again, _) = compiled_probe("row_softmax", **changes)(*inputs)
    np.testing.assert_allclose(psi_again, psi, atol=ROUNDING)
    for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(gradients), strict=True):
        np.testing.assert_allclose(a, b, atol=ROUNDING * max(1, np.abs(b).max()))


def test_new_inputs_of_the_same_shape_are_not_compiled_again():
    rng = np.random.default_rng(0)
    compiled = compiled_continuation("none")
    state = start_of(parts_of("none"), BATCH)
    before = None
    for _ in range(3):
        # Decoding feeds the state back: had it another dtype or weak type than the first, it would be compiled again.
        tokens, resets = random_tokens(rng)[:, :1], random_resets(rng)[:, :1]
        _, state = compiled(tokens, resets, state)
        before = compiled._cache_size() if before is None else before
    assert compiled._cache_size() == before


def python_positions(start, resets):
    rows = []
    for position, row in zip(start, resets, strict=True):
        rows.append([])
        for reset in row:
            position = 0 if reset else position
            rows[-1].append(position)
            position += 1
    return rows


@given(seed=SEEDS, share=st.floats(0, 1))
def test_positions_count_from_the_last_reset(seed, share):
    rng = np.random.default_rng(seed)
    start, resets = rng.integers(0, 100, size=BATCH).astype(np.int32), random_resets(rng, share)
    actual = jax.jit(document_positions, static_argnums=1)(start, LENGTH, resets)
    np.testing.assert_array_equal(actual, python_positions(start, resets))
    no_resets = document_positions(start, LENGTH, None)
    np.testing.assert_array_equal(no_resets, python_positions(start, np.zeros_like(resets)))


def test_parameters_are_counted_as_real_numbers():
    assert count_parameters({"a": np.zeros((2, 3)), "b": [np.zeros(5, complex)]}) == 16


def test_layers_of_a_fresh_model_start_different():
    config = small_config("none", mixer=MixerConfig(block_size=4, num_groups=2, state_dim=3, ssm_init="ring"))
    fresh = init_model(config, 0)
    drawn = ("rotation", "weight", "kernel", "decay", "phase", "in_proj", "out_proj")
    for path, leaf in jax.tree_util.tree_leaves_with_path(fresh.params["mixers"]):
        name = jax.tree_util.keystr(path[-1:])
        turning = leaf[:, 1::2] if "phase" in name else leaf  # every second head begins without a phase
        if any(each in name for each in drawn):
            assert np.all(turning[0] != turning[1]), path
    finest = fresh.buffers["propagators"]["edges"][0]  # the others are complete at this size
    assert not np.array_equal(finest[0], finest[1])
