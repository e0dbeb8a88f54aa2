"""A text under observation is the text that `generate` draws, and a plain pass computes what is told of it."""

import jax.numpy as jnp
import numpy as np
import pytest
from small import config

from sem_jax.data.tokenizers.char import CharTokenizer
from sem_jax.inference.language_model import LanguageModel
from sem_jax.modules.model import init_model
from sem_jax.modules.probe import Observer

pytestmark = pytest.mark.usefixtures("quick_compilation")

TEXT = "the wave turns"


def make_model(layout):
    tokenizer = CharTokenizer.train([TEXT])
    layers = {"model__layout": layout, "model__num_layers": 2, "model__propagator__nonlinear_alpha": 0.5}
    typed = config(model__vocab_size=tokenizer.vocab_size, sampling__context="unbounded", **layers)
    return LanguageModel(typed, tokenizer, init_model(typed.model, seed=0))


@pytest.fixture(scope="module")
def model(quick_compilation):
    return make_model("interleaved")


class Parts(Observer):
    """Keeps the outputs of all parts."""

    def probe(self, slots):
        values = {}

        def keep(name, value):
            return values.setdefault(name, value)

        keep.values = values
        return keep

    def seen(self, probe, module, state, context):
        return probe.values


@pytest.mark.parametrize(
    "options",
    [{}, {"temperature": 0.0}, {"temperature": 1.7, "top_k": 3}, {"temperature": 2.0, "top_k": 0, "top_p": 0.6}],
    ids=str,
)
def test_the_tokens_are_those_of_generate(model, options):
    moments = list(model.watch(TEXT, max_tokens=30, seed=3, **options))
    assert model.generate(TEXT, max_tokens=30, seed=3, **options) == TEXT + model.tokenizer.decode(
        [moment.token for moment in moments]
    )


@pytest.mark.parametrize("layout", ["interleaved", pytest.param("mixers_first", marks=pytest.mark.slow)])
def test_waves_and_probabilities_are_those_of_a_plain_forward_pass(model, layout):
    model = model if layout == "interleaved" else make_model(layout)
    moments = list(model.watch(TEXT, max_tokens=6, seed=1))
    drawn = [moment.token for moment in moments]
    tokens = jnp.asarray([*model.encode_prompt(TEXT), *drawn[:-1]])[None]
    sem = model.parts.merge()
    psi, _, stats = sem(tokens, observer=Parts())
    start = len(tokens[0]) - len(moments)
    after = np.asarray(stats.seen["propagators"]["cayley"])[:, 0, start:]  # [L, S, D]
    mixed = np.asarray(stats.seen["mixers"]["residual"])[:, 0, start:]
    first_before = mixed if sem.config.layout == "interleaved" else np.stack([mixed[1], after[0]])
    found_before, found_after = (np.stack([getattr(m, name) for m in moments], 1) for name in ("before", "after"))
    # The same sums over 16 channels and some tokens in another order, through two layers.
    near = {"rtol": 0, "atol": 300 * float(jnp.finfo(jnp.float32).eps) * np.abs(after).max()}
    np.testing.assert_allclose(found_after, after, **near)
    np.testing.assert_allclose(found_before, first_before, **near)
    assert np.abs(found_before - found_after).max() > 100 * near["atol"]

    probabilities = np.exp(np.asarray(sem.readout.log_probs(psi)))[0, start:]
    for moment, row in zip(moments, probabilities, strict=True):
        assert moment.probability == pytest.approx(row[moment.token], rel=1e-4)
        np.testing.assert_allclose(moment.probabilities, np.sort(row)[::-1][:20], rtol=1e-4)
        np.testing.assert_allclose(row[moment.likeliest], moment.probabilities, rtol=1e-4)


def test_chances_follow_from_the_options(model):
    (moment,) = model.watch(TEXT, max_tokens=1, temperature=0.5, top_k=3, top_p=1.0)
    squares = moment.probabilities[:3].astype(np.float64) ** 2  # p^(1 / temperature)
    np.testing.assert_allclose(moment.chances[:3], squares / squares.sum(), rtol=1e-5)
    assert not moment.chances[3:].any()
    (certain,) = model.watch(TEXT, max_tokens=1, temperature=0.0)
    assert certain.chances[0] == certain.chance == 1
    assert certain.token == certain.likeliest[0]
