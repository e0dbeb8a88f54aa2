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

from sem_jax.config import MixerConfig, ModelConfig
from sem_jax.modules.selective_mixer import SelectiveMixer, SelectiveSSM

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


def test_from_the_mimetic_start_still_heads_begin_by_forgetting_in_10_to_100_tokens_and_the_others_in_1_to_50():
    heads = 1024
    ssm = SelectiveSSM(heads, MixerConfig(selective_init="mimetic", num_heads=heads, state_dim=1), nnx.Rngs(params=0))
    rates = np.log(jax.nn.softplus(ssm.decay[...])).reshape(-1, 2)
    for found, slowest, fastest in ((rates[:, 0], 0.01, 0.1), (rates[:, 1], 0.02, 0.7)):
        low, high = np.log([slowest, fastest])
        # The logarithms are uniform: of 512, the extremes lie within 5/512 of the range of its ends, but for chances
        # of e^-5, and the roundings of exp and log.
        np.testing.assert_allclose([found.min(), found.max()], [low, high], atol=(high - low) / 100 + 1e-5)
    assert not np.any(ssm.phase[::2])
    assert np.all(ssm.phase[1::2])


def test_from_the_mimetic_start_a_still_head_finds_a_token_again_from_everywhere_and_a_turning_one_does_not():
    ssm = SelectiveSSM(32, MixerConfig(selective_init="mimetic", num_heads=2, state_dim=128), nnx.Rngs(params=0))
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(1, 200, 32)) + 1j * rng.normal(size=(1, 200, 32))).astype(np.complex64)
    x[0, -1] = x[0, 0]
    ssm.skip[...] = jnp.zeros(32)
    ssm.decay[...] = jnp.full(2, -30.0)  # nothing decays
    position = jnp.arange(200)[None]

    def read(ssm, x):
        return ssm(x, None, position)[0][0, -1]

    # Written 199 tokens ago and once more just now: a query makes N·1/N of its own key each time.
    alone = np.zeros_like(x)
    alone[0, [0, -1]] = x[0, 0]
    dt = ssm.step_sizes(jnp.asarray(x))[0][0, 0]
    still, turning = np.asarray(read(ssm, jnp.asarray(alone)) / x[0, 0]).reshape(2, 16)
    np.testing.assert_allclose(still, 2 * dt[0], rtol=1e-4)
    # Uniform phases leave less than 5 of its standard deviations, 1/√(2N), of the key from long ago.
    assert np.abs(turning / dt[1] - 1).max() < 5 / np.sqrt(2 * 128)
    # A still head can learn to turn.
    slopes = nnx.grad(lambda ssm: jnp.sum(jnp.abs(read(ssm, jnp.asarray(x))) ** 2))(ssm)
    assert np.all(np.abs(slopes["phase"][...]) > 0)


def test_from_the_mimetic_start_a_query_finds_what_followed_its_token_and_nothing_else():
    dim, rows, asked = 64, 64, 5
    mixer = MixerConfig(selective_init="mimetic", num_heads=2, state_dim=64)
    layer = SelectiveMixer(ModelConfig(hidden_dim=dim, mixer=mixer), nnx.Rngs(params=0), 0)
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(rows, 40, dim)) + 1j * rng.normal(size=(rows, 40, dim))).astype(np.complex64)
    x[:, -1] = x[:, asked]
    position = jnp.tile(jnp.arange(40), (rows, 1))
    taps = layer.initial_state(rows).taps
    z, _ = layer.conv(layer.input(layer.norm(jnp.asarray(x))), taps, position)
    q, k = layer.ssm.queries_and_keys(z)
    scores = np.mean(np.real(np.conj(q[:, -1:]) * np.asarray(k)), axis=(0, 2))
    # A score of independent tokens varies by about 1/√D, their mean over the rows by a fifth of this.
    error = 5 / np.sqrt(dim * rows)  # 0.08
    # Each of four taps passes on about a quarter of the power, and one of them sees the same token.
    assert np.abs(scores[[asked, asked + 1]] - 1 / 4).max() < error
    np.testing.assert_allclose(scores[-1], 1, atol=1e-5)
    others = np.delete(scores, [asked, asked + 1, *range(36, 40)])  # but for the query's neighbours
    assert np.abs(others).max() < error
