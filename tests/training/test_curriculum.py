"""Stages of a run: when they begin, what they train with, and that a stop at any point changes no bit of it.

The loop, its checkpoints and its data are real; the programs are stand-ins, whose parameters tell which batches they
have seen. `test_staged_run.py` trains a real model.
"""

import dataclasses
import shutil
import signal

import jax
import numpy as np
import pytest
from small import config as small_config
from small import differing_leaves, text_config
from stand_ins import take_step

from sem_jax.config import ConfigError, build, stages_of
from sem_jax.data import DataError, open_dataset
from sem_jax.diagnosis import run as diagnosis
from sem_jax.report import report
from sem_jax.reporting.page import page
from sem_jax.reporting.runs import read_runs
from sem_jax.sharing.card import model_card
from sem_jax.training import loop
from sem_jax.training.checkpoint import Checkpointer
from sem_jax.training.curriculum import Curriculum, obstacle, tokens_read
from sem_jax.training.loop import train
from sem_jax.training.metrics import read_metrics
from sem_jax.training.monitor import Monitor
from sem_jax.training.state import abstract_state
from sem_jax.training.workdir import checkpoint_folder, open_workdir, restore_run

pytestmark = pytest.mark.usefixtures("stand_in_programs")
STEPS = 12
BAD, DUE, BEGUN = 4, 5, 7  # the step before the stage is bad, so that it waits
FIRST, SECOND = 4 * 16, 4 * 24  # tokens of a step


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return text_config(
        tmp_path_factory.mktemp("data"),
        training__stages=f"{DUE}:24",
        training__max_steps=STEPS,
        training__checkpoint_every=2,
    )


def recording(seen):
    """A step that puts every batch it is given into `seen`, by step; one is bad, and the guard recovers slowly."""

    def make_step(config):
        def step(state, batch):
            number = int(state.step) + 1
            seen[number] = jax.device_get(batch)
            return take_step(state, batch, bad=number == BAD, lr_scale=0.5 if BAD <= number < BEGUN else 1)

        return step

    return make_step


@pytest.fixture(scope="module")
def uninterrupted(config, stand_in_programs, tmp_path_factory):
    """(workdir, batches by step) of a run from the first to the last step."""
    workdir, seen = tmp_path_factory.mktemp("uninterrupted") / "run", {}
    assert train(config, workdir, make_step=recording(seen)).finished
    return workdir, seen


def lines_of(workdir, split):
    return [line for line in read_metrics(workdir / "metrics.jsonl") if line["split"] == split]


def state_of(workdir):
    run = restore_run(workdir)
    assert run.step == STEPS
    return run.state


def test_a_stage_waits_until_the_guard_has_recovered_and_says_why(uninterrupted):
    waits, begins = lines_of(uninterrupted[0], "stage")
    assert (waits["step"], waits["stage"]) == (DUE, 2)
    assert waits["waits"] == "after a bad step the guard's LR scale is 0.5, not 1"
    assert (begins["step"], begins["seq_length"], begins["global_batch"]) == (BEGUN, 24, 4)


def test_each_stage_trains_on_its_own_batches_from_where_the_one_before_has_stopped(config, uninterrupted):
    workdir, seen = uninterrupted
    longer = dataclasses.replace(config.data, seq_length=24)
    first, second = (open_dataset(data, 0, 4).train for data in (config.data, longer))
    read_before = BEGUN * FIRST // SECOND
    expected = {step + 1: first.batch(step) for step in range(BEGUN)}
    expected |= {step + 1: second.batch(read_before + step - BEGUN) for step in range(BEGUN, STEPS)}
    assert seen.keys() == expected.keys()
    for step, batch in expected.items():
        assert all(np.array_equal(ours, theirs) for ours, theirs in zip(seen[step], batch, strict=True)), step
    read = {step: sum(batch.weights.size for number, batch in seen.items() if number <= step) for step in seen}
    lines = lines_of(workdir, "stage")
    assert lines[-1]["tokens"] == read[BEGUN]
    assert tokens_read(config, lines, np.array(list(read))).tolist() == list(read.values())
    assert tokens_read(config, [], STEPS) == STEPS * FIRST


def test_validation_keeps_the_length_of_the_first_stage(uninterrupted):
    """So that the numbers before and after can be compared."""
    lines = lines_of(uninterrupted[0], "validation")
    assert [(line["step"], line["nll"]) for line in lines] == [(6, 4 * 17), (12, 4 * 17)]


@pytest.mark.parametrize("stop", [DUE, BEGUN, BEGUN + 1])
def test_a_run_stopped_anywhere_ends_with_the_same_bits(config, uninterrupted, tmp_path, stop):
    original = Monitor.step

    def step(self, step, metrics):
        if step == stop:
            signal.raise_signal(signal.SIGINT)
        original(self, step, metrics)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Monitor, "step", step)
        assert train(config, tmp_path, make_step=recording({})).step == stop
    seen = {}
    assert train(config, tmp_path, make_step=recording(seen)).finished
    assert list(seen) == list(range(stop + 1, STEPS + 1))
    assert differing_leaves(state_of(tmp_path), state_of(uninterrupted[0])) == []
    begun = [[line for line in lines_of(each, "stage") if "tokens" in line] for each in (tmp_path, uninterrupted[0])]
    for line in (*begun[0], *begun[1]):
        del line["seconds"]
    assert begun[0] == begun[1]


@pytest.mark.parametrize("back_to", [6, 8])
def test_a_run_killed_anywhere_ends_with_the_same_bits(config, uninterrupted, tmp_path, back_to):
    """As after kill -9: metrics.jsonl is ahead of the checkpoint that the run goes on from."""
    workdir = tmp_path / "run"
    kept = dataclasses.replace(config, training=dataclasses.replace(config.training, keep_checkpoints=9))
    train(kept, workdir, make_step=recording({}))
    for path in checkpoint_folder(workdir).iterdir():
        if int(path.name) > back_to:
            shutil.rmtree(path)
    assert train(config, workdir, make_step=recording({})).finished
    assert differing_leaves(state_of(workdir), state_of(uninterrupted[0])) == []
    assert [line["step"] for line in lines_of(workdir, "stage") if "tokens" in line] == [BEGUN]


def test_a_stage_that_has_begun_keeps_its_size_and_later_ones_may_change(config, uninterrupted, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(uninterrupted[0], workdir)
    longer = {"max_steps": STEPS + 8}

    def with_stages(text):
        return dataclasses.replace(config, training=dataclasses.replace(config.training, stages=text, **longer))

    with pytest.raises(ConfigError, match=r"the run is in stage 2 of 4 x 24 tokens a step.*restore that entry"):
        train(with_stages(f"{DUE}:32"), workdir)
    curriculum = Curriculum(with_stages(f"{DUE}:24,{STEPS + 2}:32"), open_dataset(config.data, 0, 4))
    state = state_of(workdir)
    curriculum.resume(state)
    assert (curriculum.number, curriculum.is_due(STEPS + 1), curriculum.is_due(STEPS + 2)) == (2, False, True)
    read = BEGUN * FIRST + (STEPS + 2 - BEGUN) * SECOND
    assert curriculum.tokens(STEPS + 2) == read
    state = curriculum.begin_next(STEPS + 2, state)
    assert curriculum.tokens(STEPS + 2) == read
    assert [int(each) for each in state.stage] == [3, STEPS + 2, read // 128, read % 128, 32, 4]
    assert not curriculum.is_due(STEPS + 7)


def test_a_run_begun_without_stages_is_in_the_first_one(config, tmp_path):
    plain = dataclasses.replace(config, training=dataclasses.replace(config.training, stages=""))
    vocabulary = {"vocab_size": 23}
    plain, staged = (dataclasses.replace(c, model=dataclasses.replace(c.model, **vocabulary)) for c in (plain, config))
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), abstract_state(plain))
    with Checkpointer(tmp_path, 1) as checkpointer:
        checkpointer.save(1, zeros)
        _, state = checkpointer.restore(abstract_state(staged), absent=loop.leaves_of_first_stage(staged))
    assert [int(each) for each in state.stage] == [1, 0, 0, 0, 16, 4]


@pytest.mark.parametrize(
    ("changes", "losses", "reason"),
    [
        ({}, {}, None),
        ({}, {10: 2.0}, None),
        ({"consecutive": 1}, {}, "the last step was skipped"),
        ({"lr_scale": 0.25}, {10: 2.0}, "after a bad step the guard's LR scale is 0.25, not 1"),
        ({}, {10: 2.0, 20: float("nan")}, "the validation loss at step 20 is not finite"),
        ({}, {10: float("nan"), 20: 2.0}, None),
    ],
)
def test_what_keeps_a_stage_from_beginning(uninterrupted, changes, losses, reason):
    state = state_of(uninterrupted[0])
    state = state.replace(opt_state=state.opt_state._replace(lr_scale=1.0, consecutive=0)._replace(**changes))
    assert obstacle(state, losses) == reason


def test_reports_and_cards_tell_of_the_stages(uninterrupted):
    workdir, _ = uninterrupted
    assert f"- from step {BEGUN} on 4 x 24 tokens a step" in report(workdir)
    runs = read_runs([workdir])
    assert f"4 × 16 tokens a step; from step {BEGUN} on 4 x 24 tokens a step" in page(runs)
    assert runs[0].tokens(np.array([BEGUN, STEPS])).tolist() == [448, 448 + 5 * SECOND]
    config, tokenizer = open_workdir(workdir)
    model = loop.LanguageModel(config, tokenizer, state_of(workdir).evaluated, STEPS)
    assert "| training tokens | 928 |" in model_card(model, config, read_metrics(workdir / "metrics.jsonl"))


def test_damaged_lines_of_stages_are_passed_over(config):
    values = [{"tokens": "many", "tokens_per_step": 3}, {"tokens": 10**30, "tokens_per_step": 1}, {"tokens": 5}, {}]
    lines = [{"split": "stage", "step": 3} | value for value in values]
    assert tokens_read(config, lines, 10) == 10 * FIRST


def test_a_diagnosis_reads_the_batch_that_comes_next(uninterrupted, monkeypatch):
    workdir, seen = uninterrupted
    monkeypatch.setattr(diagnosis, "diagnose", lambda config, state, batch: (config.data.seq_length, batch))
    length, batch = diagnosis.diagnose_run(workdir, step=BEGUN + 1)
    assert length == 24
    assert np.array_equal(batch.tokens, seen[BEGUN + 2].tokens)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("5", r"'5' must be STEP:LENGTHxBATCH/MICRO_BATCH or STEP:LENGTH, such as 50000:2048x2048/64"),
        ("5:0", "with numbers above 0"),
        ("0:32", "with numbers above 0"),
        ("5:32x4/3", r"stage 2: config.training.micro_batch = 3 must divide config.training.global_batch = 4"),
        ("5:257", r"stage 2: config.data.seq_length = 257 exceeds config.model.max_seq_length = 256"),
        ("5:32,5:64", "stage 3: begins after 5 steps, not after the stage before it"),
        ("12:32", r"stage 2: never begins: after 12 steps the run, of config.training.max_steps = 12, has ended"),
        ("5:128x2097152", "stage 2: .*tokens a step; lower one of them"),
    ],
)
def test_a_stage_that_could_never_begin_is_refused(text, message):
    with pytest.raises(ConfigError, match=f"config.training.stages = '{text}'.*{message}"):
        small_config(training__stages=text)


def test_batches_that_a_stage_leaves_out_are_those_of_the_first():
    fields = {"training": {"global_batch": 8, "micro_batch": 2, "stages": "10:32, 2_0:64x4, 30:64x16/8"}}
    assert [stage[1:] for stage in stages_of(build(fields))] == [(128, 8, 2), (32, 8, 2), (64, 4, 2), (64, 16, 8)]


def test_a_text_too_short_for_a_later_stage_ends_the_run_before_its_first_step(tmp_path):
    config = text_config(tmp_path, model__max_seq_length=8192, training__stages="5:5000")
    with pytest.raises(DataError, match=r"config.training.stages, stage 2: a split of 4716 tokens holds no window"):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
