"""Decoding one token at a time is the model itself, and drawing follows the distribution that the options name."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import chisquare
from small import config

from sem_jax.inference.decoding import PREFILL_CHUNK, Decoder, SamplingOptions, sample
from sem_jax.modules.model import ModelParts, init_model

VOCAB, EOS, FORBIDDEN = 11, 9, 10
LENGTHS = (1, PREFILL_CHUNK - 1, PREFILL_CHUNK, PREFILL_CHUNK + 1, 2 * PREFILL_CHUNK + 2)
LONGEST = max(LENGTHS)
TOKENS = np.random.default_rng(0).integers(0, EOS, (2, LONGEST + 1)).astype(np.int32)
MODEL = config(model__vocab_size=VOCAB, model__num_layers=2).model
GREEDY = SamplingOptions(0.0, 0, 1.0)

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
def decoder(parts):
    return Decoder(parts.graphdef, np.arange(VOCAB) == FORBIDDEN, EOS)


@pytest.fixture(scope="module")
def full(parts):
    """log P of the token after each position, from one forward pass over everything."""

    def forward(params, buffers, tokens):
        model = ModelParts(parts.graphdef, params, buffers).merge()
        return model.readout.log_probs(model(tokens)[0])

    log_probs = np.asarray(jax.jit(forward)(parts.params, parts.buffers, TOKENS))
    assert np.abs(np.diff(log_probs, axis=1)).max(axis=(1, 2)).min() > 0.1
    return log_probs


def with_readout_bias(parts, token, value):
    readout = parts.params["readout"]
    return parts.params | {"readout": readout | {"bias": readout["bias"].at[token].set(value)}}


# The model


def test_steps_equal_the_forward_pass_at_every_position(parts, decoder, full):
    state = decoder.initial_state(parts.params, parts.buffers, 2)
    for position in range(TOKENS.shape[1]):
        log_probs, state = decoder.step(parts.params, parts.buffers, state, TOKENS[:, position])
        np.testing.assert_allclose(log_probs, full[:, position], rtol=0, atol=TOLERANCE, err_msg=f"at {position}")


@pytest.mark.parametrize("length", LENGTHS)
def test_prefill_of_any_length_is_the_state_of_the_forward_pass(parts, decoder, full, length):
    state = decoder.prefill(parts.params, parts.buffers, TOKENS[:, :length])
    assert np.asarray(state.position).tolist() == [length, length]
    log_probs, _ = decoder.step(parts.params, parts.buffers, state, TOKENS[:, length])
    np.testing.assert_allclose(log_probs, full[:, length], rtol=0, atol=TOLERANCE)


def greedy_by_hand(parts, decoder, prompt, count):
    """Takes the most probable allowed token, one at a time."""
    state = decoder.initial_state(parts.params, parts.buffers, len(prompt))
    for position in range(prompt.shape[1]):
        log_probs, state = decoder.step(parts.params, parts.buffers, state, prompt[:, position])
    drawn = []
    for _ in range(count):
        allowed = np.array(log_probs)
        allowed[:, FORBIDDEN] = -np.inf
        drawn.append(allowed.argmax(-1).astype(np.int32))
        log_probs, state = decoder.step(parts.params, parts.buffers, state, drawn[-1])
    rows = np.stack(drawn, axis=1)
    return [row[: list(row).index(EOS)] if EOS in row else row for row in rows]


def test_greedy_generation_takes_the_most_probable_token_each_time(parts, decoder):
    prompt = np.random.default_rng(3).integers(0, EOS, (3, 7)).astype(np.int32)
    ours = decoder.generate(parts.params, parts.buffers, prompt, 12, jax.random.key(0), GREEDY)
    expected = greedy_by_hand(parts, decoder, prompt, 12)
    assert [row.tolist() for row in ours] == [row.tolist() for row in expected]
    assert len({tuple(row) for row in expected}) > 1


def generate(parts, decoder, seed, options, length=5, params=None):
    prompt = TOKENS[:, :length]
    params = parts.params if params is None else params
    return np.concatenate(decoder.generate(params, parts.buffers, prompt, 12, jax.random.key(seed), options)).tolist()


def test_one_seed_draws_one_text(parts, decoder):
    options = SamplingOptions(1.0, 0, 1.0)
    assert generate(parts, decoder, 0, options) == generate(parts, decoder, 0, options)
    assert generate(parts, decoder, 0, options) != generate(parts, decoder, 1, options)


def test_the_single_most_probable_token_is_greedy_whatever_the_temperature(parts, decoder):
    greedy = generate(parts, decoder, 0, GREEDY)
    assert generate(parts, decoder, 5, SamplingOptions(2.0, 1, 1.0)) == greedy
    assert generate(parts, decoder, 5, SamplingOptions(2.0, 0, 1e-6)) == greedy
    assert generate(parts, decoder, 5, SamplingOptions(2.0, 0, 1.0)) != greedy


def test_a_text_ends_before_its_eos(parts, decoder):
    ended = with_readout_bias(parts, EOS, 50.0)
    assert generate(parts, decoder, 0, SamplingOptions(1.0, 0, 1.0), params=ended) == []


def test_each_text_of_a_batch_ends_for_itself(parts, decoder):
    often = with_readout_bias(parts, EOS, 1.0)
    options = SamplingOptions(1.0, 0, 1.0)
    prompt = np.repeat(TOKENS[:, :5], 8, axis=0)
    texts = decoder.generate(often, parts.buffers, prompt, 12, jax.random.key(0), options)
    lengths = [len(text) for text in texts]
    assert min(lengths) < max(lengths)
    assert all(EOS not in text for text in texts)


def test_forbidden_tokens_are_never_drawn(parts, decoder):
    tempted = with_readout_bias(parts, FORBIDDEN, 50.0)
    for options in (GREEDY, SamplingOptions(1.0, 0, 1.0), SamplingOptions(1.0, 3, 1.0), SamplingOptions(1.0, 0, 0.5)):
        drawn = generate(parts, decoder, 0, options, params=tempted)
        assert FORBIDDEN not in drawn
        assert drawn


def test_prompts_and_options_of_every_kind_share_one_compilation(parts):
    counted = Decoder(parts.graphdef, None, None)
    for length, options in ((1, GREEDY), (63, GREEDY), (65, SamplingOptions(0.7, 3, 0.9)), (131, GREEDY)):
        texts = counted.generate(parts.params, parts.buffers, TOKENS[:, :length], 12, jax.random.key(length), options)
        assert [len(text) for text in texts] == [12, 12]  # without an eos only the length ends a text
    sizes = [f._cache_size() for f in (counted._read_chunk, counted._read_rest, counted.draw)]
    assert sizes == [1, 1, 1]


# Drawing

PROBABILITIES = np.array([0.05, 0.3, 0.02, 0.25, 0.08, 0.1, 0.2])
DRAWS = 20_000
draw = jax.jit(sample)


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
