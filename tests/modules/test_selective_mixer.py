"""A model with selective mixers: it decodes as it trains, and no token sees what it must not see."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from small_models import random_parts, small_config

from sem_jax.config import MixerConfig
from sem_jax.modules.selective_mixer import SelectiveSSM

BATCH, LENGTH, VOCAB = 2, 21, 12

pytestmark = pytest.mark.usefixtures("quick_compilation")


@functools.cache
def parts_of(layout: str):
    mixer = MixerConfig(kind="selective", block_size=4, conv_width=3, num_heads=2, state_dim=3)
    config = small_config("row_softmax", mixer=mixer, layout=layout, likelihood="coherent")
    config = dataclasses.replace(config, encoder=dataclasses.replace(config.encoder, embedding_skip=True))
    parts = random_parts(config)
    parts.params["mixers"]["in_proj"]["weight"] *= config.hidden_dim**-0.5  # so that states are of order one
    return parts


@functools.cache
def full(layout: str):
    return jax.jit(lambda parts, tokens, resets: parts.merge()(tokens, resets=resets)[:2])


@functools.cache
def one_token():
    return jax.jit(lambda parts, token, state, reset: parts.merge()(token, state, resets=reset)[:2])


def drawn(seed: int, resets: bool):
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, VOCAB, (BATCH, LENGTH)).astype(np.int32)
    return tokens, rng.random((BATCH, LENGTH)) < (0.2 if resets else 0)


@pytest.mark.parametrize("layout", ["mixers_first", "interleaved"])
@pytest.mark.parametrize("resets", [False, True])
def test_decoding_gives_the_wave_of_the_full_pass_at_every_position(layout, resets):
    parts, (tokens, starts) = parts_of(layout), drawn(0, resets)
    psi, last = full(layout)(parts, tokens, starts)
    state = parts.merge().initial_state(BATCH)
    for t in range(LENGTH):
        wave, state = one_token()(parts, tokens[:, t : t + 1], state, starts[:, t : t + 1])
        # Two layers of products of order one, in float32 and in another order.
        np.testing.assert_allclose(wave[:, 0], psi[:, t], atol=1e-4)
    for ours, theirs in zip(jax.tree.leaves(state), jax.tree.leaves(last), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-4)


def test_later_tokens_and_batch_mates_change_nothing():
    parts, (tokens, starts) = parts_of("interleaved"), drawn(1, True)
    before, _ = full("interleaved")(parts, tokens, starts)
    other = tokens.copy()
    other[0, 13:] = (other[0, 13:] + 1) % VOCAB
    after, _ = full("interleaved")(parts, other, starts)
    np.testing.assert_array_equal(after[0, :13], before[0, :13])
    np.testing.assert_array_equal(after[1], before[1])
    assert np.all(np.abs(after[0, 13:] - before[0, 13:]).max(-1) > 0)


def test_a_new_document_forgets_the_one_before():
    parts, (tokens, _) = parts_of("interleaved"), drawn(2, False)
    starts = np.zeros(tokens.shape, bool)
    starts[:, 9] = True
    together, _ = full("interleaved")(parts, tokens, starts)
    alone, _ = full("interleaved")(parts, np.roll(tokens, -9, axis=1), np.zeros_like(starts))
    np.testing.assert_allclose(together[:, 9:], alone[:, : LENGTH - 9], atol=1e-4)


def test_after_ten_thousand_tokens_decoding_still_gives_the_full_pass():
    parts = parts_of("interleaved")
    length = 10_000
    tokens = jnp.asarray(np.random.default_rng(3).integers(0, VOCAB, (1, length)))
    psi, _ = jax.jit(lambda parts, tokens: parts.merge()(tokens)[:2])(parts, tokens)

    @jax.jit
    def decode(parts, tokens):
        model = parts.merge()
        prepared = model.prepare()

        def step(state, token):
            wave, state, _ = model(token[:, None], state, prepared=prepared)
            return state, wave[0, 0]

        return jax.lax.scan(step, model.initial_state(1), tokens.T)[1]

    waves = decode(parts, tokens)
    # The phases of queries and keys are counted from the start of a chunk, so that errors do not grow with the length.
    assert np.abs(waves - psi[0])[:100].max() < 1e-3
    assert np.abs(waves - psi[0])[-100:].max() < 1e-3


def test_from_the_still_start_a_key_matches_its_query_from_everywhere_and_phases_get_a_gradient():
    ssm = SelectiveSSM(
        32, MixerConfig(kind="selective", qk_init="still", num_heads=2, state_dim=16), nnx.Rngs(params=0)
    )
    ssm.qk_proj[...] = jnp.tile(ssm.qk_proj[...][:16], (2, 1))  # queries are keys
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(1, 200, 32)) + 1j * rng.normal(size=(1, 200, 32))).astype(np.complex64)
    x[0, -1] = x[0, 0]
    ssm.skip[...] = jnp.zeros(32)
    ssm.decay[...] = jnp.full(2, -30.0)  # nothing decays
    x = jnp.asarray(x)
    position = jnp.arange(200)[None]

    def read(ssm, x):
        return ssm(x, None, position)[0][0, -1]

    # Written 199 tokens ago, read as if just written: a query makes N·1/N of its own key.
    alone = jnp.zeros_like(x).at[0, 0].set(x[0, 0]).at[0, -1].set(x[0, -1])
    dt = ssm.step_sizes(x)[0][0, 0]
    np.testing.assert_allclose(read(ssm, alone), 2 * x[0, 0] * jnp.repeat(dt, 16), rtol=1e-4)
    slopes = nnx.grad(lambda ssm: jnp.sum(jnp.abs(read(ssm, x)) ** 2))(ssm)
    assert np.all(np.abs(slopes["phase"][...]) > 0)


@pytest.mark.parametrize("states", [16, 128])
def test_from_the_rotary_start_a_head_knows_a_key_again_from_far_away_and_takes_no_other_for_it(states):
    dim, tokens, distance = 32, 500, 32
    mixer = MixerConfig(kind="selective", qk_init="rotary", num_heads=2, state_dim=states)
    ssm = SelectiveSSM(dim, mixer, nnx.Rngs(params=0))
    turned = np.exp(1j * distance * np.asarray(ssm.phase[...]))
    # Half of a geometric sequence from 1 to 1/1000 lies below 1/32; of uniform phases 1/√N, by chance, would be left.
    assert np.abs(turned.mean(axis=-1)).min() > 0.4
    rng = np.random.default_rng(0)
    x = rng.normal(size=(1, tokens, dim)) + 1j * rng.normal(size=(1, tokens, dim))
    q, k = ssm.queries_and_keys(x.astype(np.complex64))
    # Of independent tokens; each is a mean of products of entries of mean power 1, with a variance of at most 1.
    scores = np.mean(np.conj(q) * k[:, ::-1], axis=-1)
    assert np.abs(scores.mean()) < 5 / np.sqrt(tokens)
