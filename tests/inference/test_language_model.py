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


def test_several_prompts_are_continued_each_as_if_alone(char_model):
    texts = char_model.generate(["the ", "wave"], seed=4)
    assert texts == [char_model.generate("the ", seed=4), char_model.generate("wave", seed=5)]
    assert char_model.generate([]) == []


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
