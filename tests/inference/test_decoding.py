"""Decoding one token at a time is the model itself, and drawing follows the distribution that the options name."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import chisquare
from small import config

from sem_jax.inference.decoding import (
    DRAW_CHUNK,
    PREFILL_CHUNK,
    Decoder,
    SamplingOptions,
    _read_token,
    reader_starts,
    sampling_logits,
)
from sem_jax.modules.model import init_model

VOCAB, EOS, FORBIDDEN = 11, 9, 10
LENGTHS = (1, PREFILL_CHUNK - 1, PREFILL_CHUNK, PREFILL_CHUNK + 1, 2 * PREFILL_CHUNK + 2)
LONGEST = max(LENGTHS) + 20
TOKENS = np.random.default_rng(0).integers(0, EOS, (2, LONGEST)).astype(np.int32)
MODEL = config(model__vocab_size=VOCAB, model__num_layers=2).model
GREEDY = SamplingOptions(0.0, 0, 1.0)
FREE = SamplingOptions(1.0, 0, 1.0)

# Both sides compute the same function in float32, in another order: the recurrence adds up `LONGEST` contributions and
# the Born rule takes a logarithm, so a few hundred roundings of numbers of order one is the error to expect.
TOLERANCE = 512 * float(jnp.finfo(jnp.float32).eps)

pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.fixture(scope="module")
def parts(quick_compilation):
    parts = init_model(MODEL, seed=0)
    # A larger readout makes the distributions differ from position to position, and the greedy path leave its start.
    bias = jnp.asarray(np.random.default_rng(1).normal(size=VOCAB), jnp.float32)
    return parts.replace(params=parts.params | {"readout": parts.params["readout"] | {"bias": 0.3 * bias}})


@pytest.fixture(scope="module")
def decoder(quick_compilation):
    return Decoder(np.arange(VOCAB) == FORBIDDEN, EOS)


@pytest.fixture(scope="module")
def forward(parts):
    """log P of the token after each position, from one forward pass over everything."""

    @jax.jit
    def forward(parts, tokens):
        model = parts.merge()
        return model.readout.log_probs(model(tokens)[0])

    log_probs = np.asarray(forward(parts, TOKENS))
    assert np.abs(np.diff(log_probs, axis=1)).max(axis=(1, 2)).min() > 0.1
    return lambda tokens: np.asarray(forward(parts, np.asarray(tokens)[None]))[0]


def with_readout_bias(parts, token, value):
    readout = parts.params["readout"]
    return parts.replace(params=parts.params | {"readout": readout | {"bias": readout["bias"].at[token].set(value)}})


def keys(count, seed=0):
    return jax.random.split(jax.random.key(seed), count)


def continued(decoder, parts, prompts, count, options=GREEDY, seed=0, context_length=None):
    """All ids that follow each prompt, as lists."""
    pieces = list(decoder.pieces(parts, prompts, count, keys(len(prompts), seed), options, context_length))
    return [np.concatenate(rows).tolist() for rows in zip(*pieces, strict=True)]


def greedy_by_hand(forward, prompt, count, context_length=None):
    """Takes the most probable allowed token, each time by a forward pass over what the elder reader has read."""
    text = list(map(int, prompt))
    for _ in range(count):
        start = reader_starts(len(text), context_length)[0]
        window = text[start:] + [0] * (LONGEST - len(text[start:]))  # one length, one compilation
        log_probs = forward(window)[len(text) - start - 1]
        best = int(np.where(np.arange(VOCAB) == FORBIDDEN, -np.inf, log_probs).argmax())
        if best == EOS:
            break
        text.append(best)
    return text[len(prompt) :]


# The model


@pytest.mark.parametrize("context_length", [None, pytest.param(1, marks=pytest.mark.slow), 2, 5, 8])
def test_greedy_texts_of_a_batch_are_those_of_forward_passes(parts, decoder, forward, context_length):
    prompts = [TOKENS[0, :length] for length in (1, 7, PREFILL_CHUNK + 1, 2 * PREFILL_CHUNK)]
    ours = continued(decoder, parts, prompts, 12, context_length=context_length)
    assert ours == [greedy_by_hand(forward, prompt, 12, context_length) for prompt in prompts]
    assert len({tuple(row) for row in ours}) > 1


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("context_length", [None, 1, 6, 7, PREFILL_CHUNK + 3])
def test_what_the_readers_of_a_prompt_have_read_is_what_they_would_have_read_one_by_one(
    parts, decoder, length, context_length
):
    whole = decoder.prefill(parts, [TOKENS[0, : length + 1]], keys(1), context_length)
    text = decoder.prefill(parts, [TOKENS[0, :1]], keys(1), context_length)
    single = jax.tree.map(lambda leaf: leaf[0], text)
    for position in range(length):
        single = advance(parts, single, context_length or 0)._replace(token=jnp.int32(TOKENS[0, position + 1]))
    # A reader that is full gives way before the next token, so that both wait for the same one.
    following = [advance(parts, t, context_length or 0) for t in (single, jax.tree.map(lambda leaf: leaf[0], whole))]
    assert int(following[0].length) == int(following[1].length)
    for ours, theirs in zip(*(jax.tree.leaves(text.states) for text in following), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=TOLERANCE * max(1, np.abs(theirs).max(initial=0)))


@jax.jit
def advance(parts, text, context_length):
    model = parts.merge()
    return _read_token(model, model.prepare(), text, jnp.int32(context_length))[1]


def test_no_reader_stands_beyond_a_bounded_context(parts, decoder):
    for length in range(1, 30):
        elder, younger = reader_starts(length, 8)
        assert 4 < length - elder <= 8 or elder == 0
        assert younger - elder == 4
        text = decoder.prefill(parts, [TOKENS[0, : length + 1]], keys(1), 8)
        assert np.asarray(text.states.position).max() <= 8


def test_one_seed_draws_one_text(parts, decoder):
    prompts = [TOKENS[0, :5], TOKENS[0, :5]]
    first, other = continued(decoder, parts, prompts, 12, FREE)
    assert first != other  # each text has a key of its own
    assert continued(decoder, parts, prompts, 12, FREE) == [first, other]
    assert continued(decoder, parts, prompts, 12, FREE, seed=1) != [first, other]


@pytest.mark.parametrize("context_length", [None, pytest.param(8, marks=pytest.mark.slow)])
def test_a_text_is_the_same_alone_and_in_a_batch_of_longer_and_shorter_ones(parts, decoder, context_length):
    prompts = [TOKENS[0, :3], TOKENS[1, :100], TOKENS[1, :9]]
    together = continued(decoder, parts, prompts, 20, FREE, context_length=context_length)
    for prompt, key, text in zip(prompts, keys(3), together, strict=True):
        (alone,) = zip(*decoder.pieces(parts, [prompt], 20, key[None], FREE, context_length), strict=True)
        assert np.concatenate(alone).tolist() == text


@pytest.mark.parametrize("count", [1, 2, DRAW_CHUNK - 1, DRAW_CHUNK, DRAW_CHUNK + 1, 2 * DRAW_CHUNK + 3])
def test_as_many_tokens_are_drawn_as_are_asked_for_and_fewer_are_the_start_of_more(parts, count):
    endless = Decoder()
    longest = continued(endless, parts, [TOKENS[0, :5]], 2 * DRAW_CHUNK + 3, FREE, context_length=6)
    assert continued(endless, parts, [TOKENS[0, :5]], count, FREE, context_length=6) == [longest[0][:count]]


def test_the_single_most_probable_token_is_greedy_whatever_the_temperature(parts, decoder):
    prompts = [TOKENS[0, :5]]
    greedy = continued(decoder, parts, prompts, 12)
    assert continued(decoder, parts, prompts, 12, SamplingOptions(2.0, 1, 1.0), seed=5) == greedy
    assert continued(decoder, parts, prompts, 12, SamplingOptions(2.0, 0, 1e-6), seed=5) == greedy
    assert continued(decoder, parts, prompts, 12, SamplingOptions(2.0, 0, 1.0), seed=5) != greedy


def test_a_text_ends_before_its_eos(parts, decoder):
    ended = with_readout_bias(parts, EOS, 50.0)
    assert continued(decoder, ended, [TOKENS[0, :5]] * 2, 12, FREE) == [[], []]


def test_each_text_of_a_batch_ends_for_itself(parts, decoder):
    often = with_readout_bias(parts, EOS, 1.0)
    texts = continued(decoder, often, [TOKENS[0, :5]] * 8, 2 * DRAW_CHUNK, FREE)
    lengths = [len(text) for text in texts]
    assert min(lengths) < max(lengths)
    assert all(EOS not in text for text in texts)


def test_forbidden_tokens_are_never_drawn(parts, decoder):
    tempted = with_readout_bias(parts, FORBIDDEN, 50.0)
    for options in (GREEDY, FREE, SamplingOptions(1.0, 3, 1.0), SamplingOptions(1.0, 0, 0.5)):
        (drawn,) = continued(decoder, tempted, [TOKENS[0, :5]], 12, options)
        assert FORBIDDEN not in drawn
        assert drawn


def test_prompts_options_and_numbers_of_every_kind_share_one_compilation(parts):
    counted = Decoder()
    cases = [(1, GREEDY, 12, 8), (63, GREEDY, 1, 9), (65, SamplingOptions(0.7, 3, 0.9), 200, 100), (131, FREE, 5, 70)]
    programs = (counted._read_chunk, counted._read_rest, counted._draw)
    before = [program._cache_size() for program in programs]  # those of other decoders, which share the first two
    for length, options, count, context_length in cases:
        texts = continued(counted, parts, list(TOKENS[:, :length]), count, options, length, context_length)
        assert [len(text) for text in texts] == [count, count]  # without an eos only the length ends a text
    new = [program._cache_size() - size for program, size in zip(programs, before, strict=True)]
    assert max(new) == 1


# Drawing

PROBABILITIES = np.array([0.05, 0.3, 0.02, 0.25, 0.08, 0.1, 0.2])
DRAWS = 20_000


@jax.jit
def draw(key, log_probs, options):
    return jax.random.categorical(key, sampling_logits(log_probs, options), axis=-1)


def draw_many(options, seed=0):
    rows = jnp.broadcast_to(jnp.log(jnp.asarray(PROBABILITIES, jnp.float32)), (DRAWS, len(PROBABILITIES)))
    return np.bincount(np.asarray(draw(jax.random.key(seed), rows, options)), minlength=len(PROBABILITIES))


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        (SamplingOptions(1.0, 0, 1.0), [0, 1, 2, 3, 4, 5, 6]),
        (SamplingOptions(0.5, 0, 1.0), [0, 1, 2, 3, 4, 5, 6]),
        (SamplingOptions(1.0, 3, 1.0), [1, 3, 6]),
        (SamplingOptions(2.0, 4, 1.0), [1, 3, 5, 6]),
        (SamplingOptions(1.0, 100, 1.0), [0, 1, 2, 3, 4, 5, 6]),
        (SamplingOptions(1.0, 0, 0.6), [1, 3, 6]),  # .3 + .25 < .6 <= .3 + .25 + .2
        (SamplingOptions(1.0, 0, 0.5), [1, 3]),
        (SamplingOptions(1.0, 0, 0.29), [1]),
        (SamplingOptions(1.0, 3, 0.7), [1, 3]),  # of .4, .333, .267 the first two reach .7
    ],
    ids=lambda value: "T{:g}-k{}-p{:g}".format(*value) if isinstance(value, SamplingOptions) else "",
)
def test_draws_follow_the_truncated_and_renormalised_distribution(options, kept):
    counts = draw_many(options)
    expected = np.zeros(len(PROBABILITIES))
    expected[kept] = PROBABILITIES[kept] ** (1 / options.temperature)
    expected *= DRAWS / expected.sum()
    assert counts[expected == 0].sum() == 0
    if len(kept) > 1:
        assert chisquare(counts[kept], expected[kept]).pvalue > 1e-3  # the seed is fixed: it passes always or never


def test_temperature_zero_takes_the_most_probable():
    assert draw_many(SamplingOptions(0.0, 0, 1.0)).tolist() == [0, DRAWS, 0, 0, 0, 0, 0]


def test_rows_are_drawn_independently():
    rows = jnp.log(jnp.full((DRAWS, 2), 0.5))
    drawn = np.asarray(draw(jax.random.key(0), rows, SamplingOptions(1.0, 0, 1.0))).astype(float)
    correlation = np.corrcoef(drawn[:-1], drawn[1:])[0, 1]
    assert abs(correlation) < 4 / np.sqrt(DRAWS)
