"""Text in, text and probabilities out; and one clear error for what cannot be used."""

import jax.numpy as jnp
import numpy as np
import pytest
from small import config, differing_leaves, fields

import sem_jax
from sem_jax.config import ConfigError
from sem_jax.data import DataError
from sem_jax.data.tokenizers.byte import ByteTokenizer
from sem_jax.data.tokenizers.char import CharTokenizer
from sem_jax.inference.language_model import LanguageModel
from sem_jax.modules.model import init_model

pytestmark = pytest.mark.usefixtures("quick_compilation")

TEXT = "the wave turns"


def make_model(tokenizer):
    typed = config(model__vocab_size=tokenizer.vocab_size, sampling__max_tokens=8)
    return LanguageModel(typed, tokenizer, init_model(typed.model, seed=0), step=7)


@pytest.fixture(scope="module")
def model(quick_compilation):
    return make_model(ByteTokenizer())


@pytest.fixture(scope="module")
def char_model(quick_compilation):
    return make_model(CharTokenizer.train([TEXT]))


def test_probabilities_are_normalised_and_causal(model):
    tokens = model.encode_prompt(TEXT)[None]
    changed = tokens.copy()
    changed[0, 10:] = 65
    first, second = (np.asarray(model.log_probs(t), np.float64) for t in (tokens, changed))
    eps = float(jnp.finfo(jnp.float32).eps)
    np.testing.assert_allclose(np.exp(first).sum(-1), 1, atol=first.shape[-1] * eps)
    np.testing.assert_allclose(first[:, :10], second[:, :10], rtol=0, atol=64 * eps)
    assert np.abs(first[:, 10:] - second[:, 10:]).max() > 1e-3


@pytest.mark.parametrize("ids", [[0, 261], [-1, 3], [2**31 - 1], [2**40]])
def test_ids_outside_the_vocabulary_are_refused(model, ids):
    with pytest.raises(DataError, match=r"leave the vocabulary 0\.\.260; encode the text"):
        model.log_probs(np.array([ids]))


@pytest.mark.parametrize("tokens", [np.zeros(4, int), np.zeros((1, 2, 3), int), np.zeros((1, 4)), [["a"]]])
def test_wrong_shapes_and_types_are_refused(model, tokens):
    with pytest.raises(DataError, match=r"tokens must be integers of shape \[B, S\], got"):
        model.log_probs(tokens)


def test_a_prompt_starts_a_document_like_those_of_the_training_text(model, char_model):
    boundary = model.tokenizer.boundary_id
    assert model.encode_prompt("ab").tolist() == [boundary, 97, 98]
    assert model.encode_prompt("").tolist() == [boundary]
    assert char_model.encode_prompt("the").tolist() == [char_model.tokenizer.encode(c)[0] for c in "the"]


def test_what_the_vocabulary_cannot_start_from_is_refused(char_model):
    with pytest.raises(DataError, match="the prompt is empty"):
        char_model.generate("")
    with pytest.raises(DataError, match=r"character 'z' .*at position 2.*byte or bpe"):
        char_model.generate("thz")


@pytest.mark.parametrize(
    ("option", "field"),
    [
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": -3}, "max_tokens"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"top_k": -1}, "top_k"),
        ({"top_k": 2**31}, "top_k"),
        ({"context": "endless"}, "context"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_p": 1.5}, "top_p"),
    ],
    ids=str,
)
def test_impossible_options_are_refused_by_name(char_model, option, field):
    with pytest.raises(ConfigError, match=rf"config\.sampling\.{field}"):
        char_model.generate("the", **option)


def test_generation_continues_the_prompt_by_so_many_tokens(char_model):
    text = char_model.generate("the ", seed=1)
    assert text.startswith("the ")
    assert len(text) == len("the ") + 8  # the configuration's max_tokens; characters have no eos
    assert char_model.generate("the ", seed=1) == text
    assert char_model.generate("the ", seed=2, temperature=2.0, top_k=0) != text
    assert char_model.generate("the ", seed=2, top_k=1) == char_model.generate("the ", seed=3, temperature=0)


@pytest.mark.parametrize("max_tokens", [1, 2, 17, 100])
def test_exactly_as_many_tokens_are_drawn_as_asked_for(char_model, max_tokens):
    text = char_model.generate("the ", max_tokens=max_tokens)
    assert len(text) == len("the ") + max_tokens
    assert char_model.generate("the ", max_tokens=101).startswith(text)


def test_several_prompts_are_continued_each_as_if_alone(char_model):
    prompts = ["the ", "wave", "the wave turns " * 9]
    texts = char_model.generate(prompts, seed=4)
    assert texts == [char_model.generate(prompt, seed=4 + i) for i, prompt in enumerate(prompts)]
    assert char_model.generate([]) == []


def test_a_restart_forgets_the_start_of_a_long_prompt_and_an_unbounded_context_does_not(char_model):
    length = char_model.config.data.seq_length
    prompts = ["t" * count * length + TEXT + "e" * length for count in (1, 20)]  # the same from the last restart on
    bounded, unbounded = (
        [char_model.generate(prompt, 30, temperature=0.05, context=context)[len(prompt) :] for prompt in prompts]
        for context in ("restart", "unbounded")
    )
    assert bounded[0] == bounded[1]
    assert unbounded[0] != unbounded[1]


def test_streaming_gives_the_text_of_generation(char_model):
    pieces = list(char_model.stream("the ", 150, seed=3))
    assert len(pieces) > 2
    assert "the " + "".join(pieces) == char_model.generate("the ", 150, seed=3)


@pytest.mark.parametrize(
    ("ids", "wanted"),
    [([[195], [164, 98]], ["", "äb", ""]), ([[97], [195]], ["a", "", "\ufffd"])],
    ids=["cut", "incomplete"],
)
def test_streaming_waits_for_the_rest_of_a_character(model, monkeypatch, ids, wanted):
    monkeypatch.setattr(model._decoder, "pieces", lambda *_: ([np.array(piece)] for piece in ids))
    assert list(model.stream("a")) == wanted


@pytest.mark.parametrize("seed", [-1, 2**32, 2**70])
def test_a_seed_that_would_be_another_one_is_refused(char_model, seed):
    with pytest.raises(ConfigError, match=rf"seed = {seed} must lie in 0\.\.4294967295"):
        char_model.generate("the ", seed=seed)


def test_the_largest_seed_and_the_largest_top_k_will_do(char_model):
    everything = char_model.generate(["the ", "the "], seed=2**32 - 1, top_k=2**20)
    assert everything == char_model.generate(["the ", "the "], seed=2**32 - 1, top_k=0)
    assert everything[1] == char_model.generate("the ", seed=0, top_k=0)  # seeds go round


def test_it_says_what_it_is(char_model):
    assert repr(char_model).startswith("LanguageModel(sem, ")
    assert f"char vocabulary of {char_model.tokenizer.vocab_size}, step 7" in repr(char_model)


def test_a_fresh_model_has_the_texts_vocabulary_and_its_seeds_parameters(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text(f"{TEXT} " * 20)
    values = fields(data__path=str(text), data__cache_dir=str(tmp_path / "cache"))
    first, other = sem_jax.init(values), sem_jax.init(sem_jax.build(values), seed=1)
    assert first.config.model.vocab_size == len(set(TEXT))
    assert (first.step, first.tokenizer.kind) == (0, "char")
    assert "readout/weight" in differing_leaves(first.parts.params, other.parts.params)


def test_every_public_name_exists():
    assert [name for name in sem_jax.__all__ if not hasattr(sem_jax, name)] == []
    assert {"init", "load", "build", "default", "ConfigError", "DataError"} <= set(sem_jax.__all__)
