"""One training step: what it adds up, what it refuses, what it leaves alone."""

from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from small import config, copied, differing_leaves, primitives

from sem_jax.data import Batch
from sem_jax.data.tokenizers.char import CharTokenizer
from sem_jax.inference.language_model import LanguageModel
from sem_jax.modules.block import Block
from sem_jax.modules.blocks import BLOCKS
from sem_jax.modules.probe import unobserved
from sem_jax.optim import Reason
from sem_jax.training.state import abstract_state, init_state
from sem_jax.training.step import make_train_step

pytestmark = pytest.mark.usefixtures("quick_compilation")

VOCAB, LENGTH = 23, 16
EMA_DECAY = 0.75
CONFIG = config(
    model__vocab_size=VOCAB,
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
def step(quick_compilation):
    """The compiled step with accumulation; every test of this file shares its one compilation."""
    return make_train_step(CONFIG)


@pytest.fixture
def state(fresh):
    return copied(fresh)


def test_a_step_calls_nothing_on_the_host(fresh):
    program = jax.make_jaxpr(make_train_step(CONFIG))(fresh, BATCH)
    assert [name for name in primitives(program) if "callback" in name] == []


@pytest.fixture(scope="module")
def first(fresh, step):
    """State and metrics after one good step."""
    return step(copied(fresh), BATCH)


def test_micro_batches_of_unequal_weight_add_up_to_the_whole_batch(fresh, first):
    whole_config = config(
        model__vocab_size=VOCAB,
        optimizer__warmup_steps=0,
        optimizer__clip_norm=0.0,
        training__global_batch=8,
        training__micro_batch=8,
        training__ema_decay=EMA_DECAY,
    )
    whole_state, whole = make_train_step(whole_config)(copied(fresh), BATCH)
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
    model = LanguageModel(CONFIG, CharTokenizer("abcdefghijklmnopqrstuvw"), fresh.model)
    log_probs = np.asarray(model.log_probs(batch.tokens[:, :-1]), np.float64)
    np.testing.assert_allclose(np.exp(log_probs).sum(-1), 1, atol=VOCAB * EPS)
    chosen = np.take_along_axis(log_probs, batch.tokens[:, 1:, None], axis=-1)[..., 0]
    expected = -(batch.weights * chosen).sum() / batch.weights.sum()
    _, metrics = step(copied(fresh), batch)
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
    like = abstract_state(CONFIG)
    assert jax.tree.structure(like) == jax.tree.structure(fresh)  # the model's structure is part of it
    kinds = [[(x.shape, x.dtype, x.weak_type) for x in jax.tree.leaves(s)] for s in (like, fresh)]
    assert kinds[0] == kinds[1]
    assert not any(leaf.weak_type for leaf in jax.tree.leaves(fresh))


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
    start, one = jax.device_get((fresh.params, first[0].params))
    expected = jax.tree.map(
        lambda p0, p1, p2: EMA_DECAY * (EMA_DECAY * p0 + (1 - EMA_DECAY) * p1) + (1 - EMA_DECAY) * p2,
        start,
        one,
        second.params,
    )
    for ours, theirs in zip(jax.tree.leaves(second.ema), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=8 * EPS, atol=8 * EPS)
    assert differing_leaves(second.ema, second.params)
    assert second.evaluated.params is second.ema
    assert second.replace(ema=None).evaluated.params is second.params


def test_a_good_step_moves_every_parameter_and_no_buffer(fresh, first):
    before, after = jax.device_get((fresh, first[0]))
    assert len(differing_leaves(before.params, after.params)) == len(jax.tree.leaves(before.params))
    assert len(jax.tree.leaves(before.buffers)) == 4  # three graphs and the frequencies
    assert differing_leaves(before.buffers, after.buffers) == []


@pytest.fixture
def blurring(monkeypatch):
    """A kind of block of our own is known."""
    monkeypatch.setitem(BLOCKS, "blurs", Blur)


class Blur(Block):
    """Mixes each position with the one before it: x + g·(the wave before)."""

    PARTS: ClassVar = {"blur": ("gain",)}

    def __init__(self, config, rngs, layer):
        del rngs
        self.gain = nnx.Param(jnp.full(config.hidden_dim, 0.1 * (layer + 1)), decay=False)

    def initial_state(self, batch_size):
        return jnp.zeros((batch_size, self.gain.shape[-1]), jnp.complex64)

    def __call__(self, x, state, context, probe=unobserved, prepared=None):
        before = jnp.concatenate([state[:, None], x[:, :-1]], axis=1)
        before = jnp.where((context.position == 0)[..., None], 0, before)
        return probe("blur", x + self.gain[...] * before), x[:, -1], jnp.max(jnp.abs(x))


@pytest.mark.usefixtures("blurring")
@pytest.mark.parametrize("blocks", [pytest.param("mixers", marks=pytest.mark.slow), "blurs,propagators"])
def test_a_model_of_other_blocks_trains(blocks):
    changed = config(model__vocab_size=VOCAB, model__blocks=blocks, optimizer__warmup_steps=0)
    state, batch = init_state(changed), Batch(*(rows[:4] for rows in BATCH))
    train_step, losses, start = make_train_step(changed), [], jax.device_get(state.params)
    assert start.keys() == {"encoder", *blocks.split(","), "final_gamma", "readout"}
    for _ in range(3):
        state, metrics = train_step(state, batch)
        losses.append(float(metrics.loss))
    assert losses[2] < losses[0]
    assert int(metrics.skipped) == 0
    assert len(metrics.propagators.residual) == ("propagators" in blocks)
    assert len(differing_leaves(start, state.params)) == len(jax.tree.leaves(start))
    if "blurs" in blocks:
        assert state.model.decays()["blurs"] == {"gain": False}
