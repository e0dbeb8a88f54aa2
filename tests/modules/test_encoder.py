from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest
from flax import nnx
from small_models import CAUSAL_TRANSPORTS, random_parts, small_config

from sem_jax.modules.block import Context
from sem_jax.modules.encoder import Encoder

BATCH = 2
TOKENS = np.array([[3, 1, 4, 1, 5], [2, 7, 1, 8, 2]], np.int32)
POSITION = np.array([[0, 1, 2, 3, 4], [9, 10, 11, 0, 1]], np.int32)

pytestmark = pytest.mark.usefixtures("x64", "quick_compilation")


def encoder_of(transport, **changes) -> Encoder:
    config = small_config(transport)
    config = dataclasses.replace(config, encoder=dataclasses.replace(config.encoder, **changes))
    return random_parts(config).merge().encoder


def compiled(encoder):
    """(variables, token frequencies) -> (ψ, plan or None)."""
    graphdef, _ = nnx.split(encoder)
    state = jax.tree.map(lambda x: x.astype(float), encoder.initial_state(BATCH))

    @jax.jit
    def encode(variables, token_freqs=None):
        seen = {}

        def probe(name, value):
            seen[name] = value
            return value

        psi, _ = nnx.merge(graphdef, variables)(TOKENS, state, Context(POSITION), token_freqs, probe)
        return psi, seen.get("plan")

    return encode


def encode(encoder):
    return compiled(encoder)(nnx.split(encoder)[1])


def turned_embedding(encoder):
    phase = POSITION[..., None] * 10000.0 ** (-np.arange(8) / 8)
    return np.asarray(encoder.embedding[...])[TOKENS] * np.exp(1j * phase)


def test_without_transport_a_token_is_its_embedding_turned_by_its_position():
    encoder = encoder_of("none")
    psi, _ = encode(encoder)
    np.testing.assert_allclose(psi, turned_embedding(encoder), atol=1e-13)


def test_without_a_position_phase_a_token_is_its_embedding_at_every_position():
    encoder = encoder_of("none", position_phase=False)
    psi, _ = encode(encoder)
    assert psi.dtype == complex
    np.testing.assert_array_equal(psi, np.asarray(encoder.embedding[...])[TOKENS])
    assert jax.tree.leaves(nnx.split(encoder, nnx.Param, ...)[2]) == []  # nothing to turn by


def test_the_skip_adds_the_plain_embedding_to_the_plan():
    encoder = encoder_of("row_softmax", embedding_skip=True)
    with_skip, _ = encode(encoder)
    without, _ = encode(encoder_of("row_softmax", embedding_skip=False))
    np.testing.assert_allclose(with_skip - without, turned_embedding(encoder), atol=1e-13)


@pytest.mark.parametrize("transport", [t for t in CAUSAL_TRANSPORTS if t != "none"])
def test_every_causal_plan_has_rows_of_one(transport):
    _, plan = encode(encoder_of(transport))
    np.testing.assert_allclose(np.sum(plan, axis=-1), 1, rtol=1e-12)
    assert np.all(np.asarray(plan) >= 0)


def test_a_frequency_flattens_the_plan_of_its_own_token_only():
    """The cost is divided by log(f + e): by 1 where f = 0, by much where f is large, so every column comes alike."""
    encoder = encoder_of("row_softmax")
    variables, run = nnx.split(encoder)[1], compiled(encoder)
    plain, plan = run(variables, np.zeros(12))
    np.testing.assert_allclose(encode(encoder)[0], plain, atol=1e-13)
    frequency = np.zeros(12)
    frequency[1] = 1e3
    psi, _ = run(variables, frequency)
    np.testing.assert_array_equal(psi[TOKENS != 1], plain[TOKENS != 1])
    assert np.all(np.abs(psi - plain)[TOKENS == 1].max(-1) > 1e-3)
    _, flat = run(variables, np.full(12, 1e300))
    assert np.all(flat.max(-1) < plan.max(-1))
