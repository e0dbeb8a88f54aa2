"""One training step: what it adds up, what it refuses, what it leaves alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import config, copied, differing_leaves, primitives, quick_train_step

from sem_jax.data import Batch
from sem_jax.data.tokenizers.char import CharTokenizer
from sem_jax.inference.language_model import LanguageModel
from sem_jax.modules.model import ModelParts
from sem_jax.optim import Reason
from sem_jax.training.state import abstract_state, evaluated_params, init_state
from sem_jax.training.step import make_train_step

pytestmark = pytest.mark.usefixtures("quick_compilation")

VOCAB, LENGTH = 23, 16
EMA_DECAY, RATE = 0.75, 0.25
CONFIG = config(
    model__vocab_size=VOCAB,
    model__encoder__transport="population",
    model__encoder__population_rate=RATE,
    optimizer__warmup_steps=0,
    optimizer__clip_norm=0.0,  # so that Adam's first moment is the gradient
    training__global_batch=8,
    training__micro_batch=2,
    training__ema_decay=EMA_DECAY,
)
EPS = float(jnp.finfo(jnp.float32).eps)


def make_batch(seed):
    """Random tokens, documents that start anywhere, and micro-batches of very different weight."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, VOCAB, (8, LENGTH + 1)).astype(np.int32)
    resets = rng.random((8, LENGTH + 1)) < 0.1
    share = np.repeat([1.0, 0.5, 0.1, 0.0], 2)[:, None]
    return Batch(tokens, resets, (rng.random((8, LENGTH)) < share).astype(np.float32))


BATCH = make_batch(0)
BAD = BATCH._replace(weights=np.where(np.arange(8)[:, None] == 3, np.nan, BATCH.weights).astype(np.float32))


@pytest.fixture(scope="module")
def fresh(quick_compilation):
    return init_state(CONFIG)


@pytest.fixture(scope="module")
def step(fresh):
    """The compiled step with accumulation; every test of this file shares its one compilation."""
    return quick_train_step(fresh[0].graphdef, CONFIG)


@pytest.fixture
def state(fresh):
    return copied(fresh[1])


def test_a_step_calls_nothing_on_the_host(fresh):
    program = jax.make_jaxpr(make_train_step(fresh[0].graphdef, CONFIG))(fresh[1], BATCH)
    assert [name for name in primitives(program) if "callback" in name] == []


@pytest.fixture(scope="module")
def first(fresh, step):
    """State and metrics after one good step."""
    return step(copied(fresh[1]), BATCH)


def test_micro_batches_of_unequal_weight_add_up_to_the_whole_batch(fresh, first):
    whole_config = config(
        model__vocab_size=VOCAB,
        model__encoder__transport="population",
        optimizer__warmup_steps=0,
        optimizer__clip_norm=0.0,
        training__global_batch=8,
        training__micro_batch=8,
        training__ema_decay=EMA_DECAY,
    )
    whole_state, whole = quick_train_step(fresh[0].graphdef, whole_config)(copied(fresh[1]), BATCH)
    # Sums of `terms` tokens in another order differ by a few roundings of the largest partial sum.
    terms = float(BATCH.weights.sum())
    np.testing.assert_allclose(first[1].loss, whole.loss, rtol=8 * EPS)
    np.testing.assert_allclose(first[1].nll, whole.nll, rtol=8 * EPS)
    np.testing.assert_allclose(first[1].grad_norm, whole.grad_norm, rtol=terms * EPS)
    gradients = [jax.tree.leaves(s.opt_state.inner.direction["adam"].mu) for s in (first[0], whole_state)]
    size = float(whole.grad_norm) * (1 - CONFIG.optimizer.b1)
    assert size > 1e-2
    for ours, theirs in zip(*gradients, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=terms * EPS * size)


def test_reported_nll_is_that_of_the_language_model(fresh, step):
    batch = BATCH._replace(resets=np.zeros_like(BATCH.resets))
    parts = ModelParts(fresh[0].graphdef, copied(fresh[1].params), copied(fresh[1].buffers))
    model = LanguageModel(CONFIG, CharTokenizer("abcdefghijklmnopqrstuvw"), parts)
    log_probs = np.asarray(model.log_probs(batch.tokens[:, :-1]), np.float64)
    np.testing.assert_allclose(np.exp(log_probs).sum(-1), 1, atol=VOCAB * EPS)
    chosen = np.take_along_axis(log_probs, batch.tokens[:, 1:, None], axis=-1)[..., 0]
    expected = -(batch.weights * chosen).sum() / batch.weights.sum()
    _, metrics = step(copied(fresh[1]), batch)
    np.testing.assert_allclose(metrics.nll, expected, rtol=32 * EPS)
    assert metrics.loss > metrics.nll  # the λ·log²Z term


def test_donated_states_go_on_without_a_second_compilation(step, state):
    losses = []
    for i in range(5):
        before = state
        state, metrics = step(state, make_batch(i % 2))
        losses.append(float(metrics.loss))
        assert all(leaf.is_deleted() for leaf in jax.tree.leaves(before.params))
    assert int(state.step) == 5
    assert losses[4] < losses[0]  # the same batch again
    assert step._cache_size() == 1


def test_fresh_and_restored_states_have_one_type(fresh):
    like, graphdef = abstract_state(CONFIG)
    assert graphdef == fresh[0].graphdef
    kinds = [jax.tree.map(lambda x: (x.shape, x.dtype, x.weak_type), s) for s in (like, fresh[1])]
    assert kinds[0] == kinds[1]
    assert not any(leaf.weak_type for leaf in jax.tree.leaves(fresh[1]))


def test_a_nan_leaves_no_trace_but_the_guards(step, first):
    good = jax.device_get(first[0])
    bad, metrics = jax.device_get(step(copied(first[0]), BAD))
    assert np.isnan(metrics.loss)
    kept = (good.params, good.buffers, good.ema, good.opt_state.inner)
    assert differing_leaves(kept, (bad.params, bad.buffers, bad.ema, bad.opt_state.inner)) == []
    assert (int(good.step), int(bad.step)) == (1, 2)
    assert (int(metrics.skipped), int(metrics.consecutive)) == (1, 1)
    assert (int(metrics.reason), int(metrics.leaf)) == (Reason.LOSS, -1)
    assert (float(metrics.lr_scale), float(bad.opt_state.lr_scale)) == (1.0, 0.5)


def test_the_step_after_a_nan_goes_on_at_half_the_rate(step, first):
    bad, _ = step(copied(first[0]), BAD)
    before = jax.device_get(bad.params)
    after, metrics = jax.device_get(step(bad, BATCH))
    assert np.isfinite(metrics.loss)
    assert (int(metrics.skipped), int(metrics.consecutive)) == (1, 0)
    assert metrics.lr_scale == 0.5
    assert metrics.lr == pytest.approx(0.5 * CONFIG.optimizer.learning_rate, rel=4 * EPS)
    moved = set(differing_leaves(before, after.params))
    assert {"encoder/embedding", "readout/weight", "readout/bias"} <= moved


def test_average_of_the_parameters_follows_its_definition(fresh, step, first):
    second, _ = jax.device_get(step(copied(first[0]), BATCH))
    start, one = jax.device_get((fresh[1].params, first[0].params))
    expected = jax.tree.map(
        lambda p0, p1, p2: EMA_DECAY * (EMA_DECAY * p0 + (1 - EMA_DECAY) * p1) + (1 - EMA_DECAY) * p2,
        start,
        one,
        second.params,
    )
    for ours, theirs in zip(jax.tree.leaves(second.ema), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=8 * EPS, atol=8 * EPS)
    assert differing_leaves(second.ema, second.params)
    assert evaluated_params(second) is second.ema
    assert evaluated_params(second._replace(ema=None)) is second.params


def test_transport_potential_moves_towards_even_use_of_the_columns(fresh, step, first):
    potential = np.asarray(first[0].buffers["encoder"]["potential"], np.float64)
    assert np.all(np.asarray(fresh[1].buffers["encoder"]["potential"]) == 0)
    model = ModelParts(fresh[0].graphdef, fresh[1].params, fresh[1].buffers).merge()
    hidden = model.encoder.embedding[...][BATCH.tokens[:, :-1]]
    points = np.asarray(model.encoder.input_proj(hidden), np.float64)
    distance = np.square(points[..., None, :] - np.asarray(model.encoder.codebook[...], np.float64)).sum(-1)
    kernel = np.exp(-(distance - distance.min(-1, keepdims=True)) / CONFIG.model.encoder.sinkhorn_epsilon)
    share = (kernel / kernel.sum(-1, keepdims=True)).mean((0, 1))
    change = -np.log(len(share) * np.maximum(share, 1e-6))
    # Distances of order 10 are rounded to 1e-6 and divided by ε = .05.
    np.testing.assert_allclose(potential, RATE * (change - change.mean()), atol=1e-4)
    assert np.abs(potential).max() > 1e-2
