"""Training under a teacher: what is minimised, what the teacher is, and that without one nothing changes."""

import functools
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import (
    array_sizes,
    config,
    copied,
    differing_leaves,
    primitives,
    shared_programs,
    text_config,
)

from sem_jax.core import coherent
from sem_jax.data import Batch
from sem_jax.modules.model import init_model
from sem_jax.training.checkpoint import Checkpointer
from sem_jax.training.loop import train
from sem_jax.training.metrics import read_metrics
from sem_jax.training.monitor import Monitor
from sem_jax.training.state import abstract_state, init_state
from sem_jax.training.step import ema_rate, make_eval_step, make_train_step
from sem_jax.training.workdir import checkpoint_folder, open_workdir

pytestmark = pytest.mark.usefixtures("quick_compilation")

VOCAB, LENGTH, SEQUENCES = 23, 16, 8
ALPHA, TEMPERATURE = 0.3, 2.0
EPS = float(jnp.finfo(jnp.float32).eps)


@functools.cache
def run_config(**changes):
    """Distillation from an average whose decay rises over the first four steps."""
    return config(
        **{
            "model__vocab_size": VOCAB,
            "optimizer__warmup_steps": 0,
            "optimizer__clip_norm": 0.0,  # so that Adam's first moment is the gradient
            "training__global_batch": SEQUENCES,
            "training__micro_batch": 2,
            "training__ema_decay": 0.9,
            "training__ema_decay_start": 0.5,
            "training__ema_decay_steps": 4,
            "training__distill_weight": ALPHA,
            "training__distill_temperature": TEMPERATURE,
        }
        | changes
    )


@functools.cache
def fresh(config):
    return init_state(config)


@functools.cache
def step_of(config):
    return make_train_step(config)


def start(config):
    """A fresh state whose teacher is another model, as after many steps."""
    state = fresh(config)
    return on_device(state.replace(ema=state.ema and init_model(config.model, seed=7).params))


def on_device(state):
    """A copy bound to a device, as every later state is: the step is not compiled again for those."""
    return jax.device_put(copied(state), jax.devices()[0])


def make_batch(seed):
    """Random tokens, and micro-batches of very different weight."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, VOCAB, (SEQUENCES, LENGTH + 1)).astype(np.int32)
    share = np.repeat([1.0, 0.5, 0.1, 0.0], 2)[:, None]
    weights = (rng.random((SEQUENCES, LENGTH)) < share).astype(np.float32)
    return Batch(tokens, np.zeros(tokens.shape, bool), weights)


BATCH = make_batch(0)
BAD = BATCH._replace(weights=np.where(np.arange(SEQUENCES)[:, None] == 3, np.nan, BATCH.weights).astype(np.float32))

LIKELIHOODS = ["born", pytest.param("reference", marks=pytest.mark.slow)]
PLAIN = {"training__distill_weight": 0.0}
NO_AVERAGE = {**PLAIN, "training__ema_decay": 0.0, "training__ema_decay_steps": 0}


def softened(config, parts):
    """log P_T of the batch in double precision, from all log-probabilities or logits of the model."""

    @jax.jit
    def logits(parts):
        model = parts.merge()
        psi, _, _ = model(jnp.asarray(BATCH.tokens[:, :-1]))
        is_reference = config.model.likelihood == "reference"
        return model.readout.reference_logits(psi)[0] if is_reference else model.readout.log_probs(psi)

    scaled = np.asarray(logits(parts), np.float64) / config.training.distill_temperature
    return scaled - np.log(np.exp(scaled).sum(-1, keepdims=True))


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_the_loss_is_the_weighted_sum_of_the_hard_one_and_the_divergence(likelihood):
    config = run_config(model__likelihood=likelihood)
    state = start(config)
    hard = make_eval_step(config)(state.model, BATCH).sums
    student, teacher = (softened(config, parts) for parts in (state.model, state.evaluated))
    divergence = TEMPERATURE**2 * (np.exp(teacher) * (teacher - student)).sum(-1)
    total = (BATCH.weights * divergence).sum()
    _, metrics = step_of(config)(state, BATCH)
    # The born mean is over target tokens, the reference's sum is a mean over sequences only.
    expected = total / (BATCH.weights.sum() if likelihood == "born" else SEQUENCES)
    assert expected > 0.1
    # Log-probabilities of size 4 are rounded to 4·EPS, and amplitudes before them to 4·EPS.
    np.testing.assert_allclose(metrics.distill, expected, rtol=64 * EPS)
    combined = (1 - ALPHA) * hard.loss / hard.weight + ALPHA * metrics.distill
    np.testing.assert_allclose(metrics.loss, combined, rtol=8 * EPS)
    np.testing.assert_allclose(metrics.nll, hard.nll / hard.weight, rtol=8 * EPS)
    assert hard.divergence is None


@pytest.mark.slow
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_micro_batches_of_unequal_weight_add_up_to_the_whole_batch(likelihood):
    configs = [run_config(model__likelihood=likelihood, training__micro_batch=size) for size in (2, SEQUENCES)]
    (parts, part), (whole, single) = (step_of(config)(start(config), BATCH) for config in configs)
    # Sums of `terms` tokens in another order differ by a few roundings of the largest partial sum.
    terms = float(BATCH.weights.sum())
    np.testing.assert_allclose(part.distill, single.distill, rtol=8 * EPS)
    np.testing.assert_allclose(part.loss, single.loss, rtol=8 * EPS)
    size = float(single.grad_norm) * (1 - configs[0].optimizer.b1)
    assert size > 1e-2
    gradients = [jax.tree.leaves(state.opt_state.inner.direction["adam"].mu) for state in (parts, whole)]
    for ours, theirs in zip(*gradients, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=terms * EPS * size)


def program(config):
    """Of the step, which is not traced again when it is compiled."""
    return step_of(config).trace(start(config), BATCH).jaxpr


@pytest.mark.slow
def test_without_weight_the_teacher_costs_nothing_and_changes_nothing():
    names = ["dot_general", "scan", "while", "exp", "log"]
    distilled, averaged, plain = (
        {name: list(primitives(program(c))).count(name) for name in names}
        for c in (run_config(), run_config(**PLAIN), run_config(**NO_AVERAGE))
    )
    assert averaged == plain
    assert distilled["dot_general"] > averaged["dot_general"]
    states = []
    for c in (run_config(**PLAIN), run_config(**NO_AVERAGE)):
        state = start(c)
        for seed in range(3):
            state, metrics = step_of(c)(state, make_batch(seed))
        states.append((state.replace(ema=None), metrics))
    assert differing_leaves(*states) == []


@pytest.mark.slow
def test_evaluation_is_the_same_program_with_and_without_a_teacher():
    programs = []
    for c in (run_config(), run_config(**NO_AVERAGE)):
        programs.append(str(jax.make_jaxpr(make_eval_step(c))(fresh(c).model, BATCH)))
    assert programs[0] == programs[1]


@pytest.mark.slow
@pytest.mark.parametrize("micro_batch", [4, SEQUENCES])
def test_no_array_over_positions_and_vocabulary_is_formed_in_training(micro_batch, monkeypatch):
    monkeypatch.setattr(coherent, "CHUNK_ENTRIES", 257 * 16)  # at these sizes one chunk would hold all positions
    vocab = 257  # so that B·S·V is the largest product in a step: of its own arrays the readout's V·2D, 2D < B·S
    config = run_config(model__vocab_size=vocab, training__micro_batch=micro_batch)
    assert max(array_sizes(program(config))) < micro_batch * LENGTH * vocab


@pytest.mark.slow
def test_the_average_follows_its_schedule_and_a_bad_step_leaves_it_alone():
    config = run_config()
    state = start(config)
    expected = jax.tree.map(lambda x: np.asarray(x, np.result_type(x.dtype, np.float64)), state.ema)
    for decay in (0.5, 0.6, 0.7):
        state, _ = step_of(config)(state, BATCH)
        expected = jax.tree.map(lambda old, new, d=decay: d * old + (1 - d) * np.asarray(new), expected, state.params)
    for ours, theirs in zip(jax.tree.leaves(state.ema), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=8 * EPS, atol=8 * EPS)
    before = jax.device_get(state.ema)
    state, metrics = step_of(config)(state, BAD)
    assert int(metrics.consecutive) == 1
    assert differing_leaves(before, state.ema) == []


@pytest.mark.parametrize(
    ("changes", "step", "decay"),
    [
        ({}, 0, 0.99),
        ({}, 5000, (0.99 + 0.9999) / 2),
        ({}, 10_000, 0.9999),
        ({}, 90_000, 0.9999),
        ({"training__ema_decay_steps": 0}, 0, 0.9999),
        ({"training__ema_decay_start": 0.0}, 0, 0.0),
    ],
)
def test_the_decay_rises_linearly_to_its_final_value(changes, step, decay):
    seed = {"training__ema_decay": 0.9999, "training__ema_decay_start": 0.99, "training__ema_decay_steps": 10_000}
    rate = jax.jit(lambda step: jnp.float32(ema_rate(config(**seed | changes).training, step)))(jnp.int32(step))
    # Relative to 1 − decay, of which a decay in float32 would keep three digits.
    np.testing.assert_allclose(rate, 1 - decay, rtol=8 * EPS)


@pytest.mark.slow
def test_a_model_learns_from_the_text_and_its_teacher():
    config = run_config()
    state, seen = on_device(fresh(config)), []
    batch = BATCH._replace(weights=np.ones_like(BATCH.weights))
    for _ in range(40):
        state, metrics = step_of(config)(state, batch)
        seen.append(jax.device_get(metrics))
    # The first teacher is the student itself.
    assert seen[0].distill == pytest.approx(0, abs=100 * EPS)
    assert all(metrics.distill > 1e-4 for metrics in seen[2:])
    assert seen[-1].nll < seen[0].nll - 1
    assert int(seen[-1].skipped) == 0


@pytest.fixture(scope="module")
def text_run(tmp_path_factory, quick_compilation):
    """Configuration and workdir of an uninterrupted run of 12 steps."""
    config = text_config(
        tmp_path_factory.mktemp("data"),
        training__ema_decay=0.9,
        training__ema_decay_start=0.5,
        training__ema_decay_steps=10,
        training__distill_weight=0.5,
    )
    workdir = tmp_path_factory.mktemp("uninterrupted")
    with shared_programs():
        train(config, workdir)
        yield config, workdir


def final_state(workdir):
    config, _ = open_workdir(workdir)
    with Checkpointer(checkpoint_folder(workdir), 3) as checkpointer:
        step, state = checkpointer.restore(abstract_state(config))
    assert step == config.training.max_steps
    return state


def test_a_run_reports_the_divergence_of_its_training_only(text_run):
    lines = read_metrics(text_run[1] / "metrics.jsonl")
    for line in lines:
        assert ("distill" in line) == (line["split"] == "train")
    divergences = [line["distill"] for line in lines if line["split"] == "train"]
    assert divergences[0] == pytest.approx(0, abs=100 * EPS)  # the first teacher is the student itself
    assert all(divergence > 0 for divergence in divergences[1:])


def test_an_interrupted_run_goes_on_to_the_same_bits(text_run, tmp_path, monkeypatch):
    config, uninterrupted = text_run
    original = Monitor.step

    def step(self, step, metrics):
        if step == 7:
            signal.raise_signal(signal.SIGINT)
        original(self, step, metrics)

    with monkeypatch.context() as patch:
        patch.setattr(Monitor, "step", step)
        assert train(config, tmp_path).step == 7
    assert train(config, tmp_path).finished
    assert differing_leaves(final_state(uninterrupted), final_state(tmp_path)) == []
    divergences = [
        [line["distill"] for line in read_metrics(workdir / "metrics.jsonl") if line["split"] == "train"]
        for workdir in (uninterrupted, tmp_path)
    ]
    # The line of step 8 is a mean over steps 7 and 8 in one run, of which the other has forgotten the first.
    assert divergences[0][4:] == divergences[1][4:]
