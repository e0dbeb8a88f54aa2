"""Whole runs on a small text: they learn, stop, resume to the bit, and end when there is no hope."""

import collections
import dataclasses
import gzip
import io
import itertools
import json
import math
import shutil
import signal

import jax
import numpy as np
import pytest
from small import TEXT, differing_leaves, text_config

import sem_jax
from sem_jax.config import ConfigError
from sem_jax.data import DataError, open_dataset
from sem_jax.modules.propagator import PropagatorStats
from sem_jax.optim import Reason
from sem_jax.training import evaluation, loop
from sem_jax.training.checkpoint import Checkpointer
from sem_jax.training.loop import train
from sem_jax.training.metrics import read_metrics
from sem_jax.training.monitor import Monitor, TrainingDiverged
from sem_jax.training.processes import interruptible
from sem_jax.training.state import abstract_state
from sem_jax.training.step import StepMetrics
from sem_jax.training.workdir import checkpoint_folder, locked_workdir, open_workdir

pytestmark = pytest.mark.usefixtures("programs")
STEPS = 200
HOPELESS = 3


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """One configuration for all runs; its noise is weak, but without it resuming would be easier than it is."""
    return text_config(
        tmp_path_factory.mktemp("data"),
        optimizer__temperature=1e-7,
        optimizer__guard_max_consecutive=HOPELESS,
        training__max_steps=STEPS,
        training__log_every=10,
        training__eval_every=100,
        training__health_every=50,
        training__checkpoint_every=50,
    )


@pytest.fixture(scope="module")
def uninterrupted(config, programs, tmp_path_factory):
    """Workdir of a run from the first to the last step."""
    workdir = tmp_path_factory.mktemp("uninterrupted")
    assert train(config, workdir).finished
    return workdir


@pytest.fixture
def workdir(tmp_path):
    return tmp_path / "run"


def metrics_of(workdir):
    return read_metrics(workdir / "metrics.jsonl")


def final_state(workdir):
    like = abstract_state(open_workdir(workdir)[0])
    with Checkpointer(checkpoint_folder(workdir), 3) as checkpointer:
        step, state = checkpointer.restore(like)
    assert step == STEPS
    return state


def repeatable(lines):
    """Lines without the values that no run repeats."""
    return [
        {name: value for name, value in line.items() if name not in ("tokens_per_s", "seconds")}
        for line in lines
        if line["split"] != "time"
    ]


class Unread:
    """A number of a step that must not be looked at before a condition holds."""

    def __init__(self, value, may_be_read):
        self._value, self._may_be_read = value, may_be_read

    def __array__(self, *args, **kwargs):
        assert self._may_be_read(), "the host waits for a step before the next one is on its way"
        return np.asarray(self._value)

    def __float__(self):
        return float(self.__array__())

    def __int__(self):
        return int(self.__array__())

    def __bool__(self):
        return bool(self.__array__())


def with_training(config, monkeypatch, **changes):
    """The configuration with fields of `training` that no program depends on; its programs are those of before."""
    for module, name in ((loop, "init_state"), (loop, "make_train_step"), (evaluation, "make_eval_step")):
        make = getattr(module, name)
        monkeypatch.setattr(
            module, name, lambda seen, make=make: make(dataclasses.replace(seen, training=config.training))
        )
    return dataclasses.replace(config, training=dataclasses.replace(config.training, **changes))


@pytest.mark.slow
def test_no_number_of_a_step_is_read_before_the_next_step_is_dispatched(config, workdir, monkeypatch):
    """Not even under a profile and with a tracker."""
    config = with_training(config, monkeypatch, profile="13:14", trackers="tensorboard")
    training = config.training
    dispatched = 0

    def make_step(config):
        train_step = loop.make_train_step(config)

        def step(state, batch):
            nonlocal dispatched
            dispatched = number = dispatched + 1
            state, metrics = train_step(state, batch)
            pauses = number % training.eval_every == 0 or number % training.checkpoint_every == 0

            def may_be_read():
                return dispatched > number or pauses

            return state, jax.tree.map(lambda leaf: Unread(leaf, may_be_read), metrics)

        return step

    train(config, workdir, make_step=make_step)
    lines = [line["step"] for line in metrics_of(workdir) if line["split"] == "train"]
    assert lines == list(range(training.log_every, STEPS + 1, training.log_every))
    (trace,) = (workdir / "profile").rglob("perfetto_trace.json.gz")
    events = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    steps = {event["args"]["step_num"] for event in events if event.get("name") == "train"}
    assert steps == {"13", "14"}
    assert [path.name[:20] for path in (workdir / "tensorboard").iterdir()] == ["events.out.tfevents."]


def test_a_skipped_step_does_not_hide_the_loss_of_its_neighbours(config, workdir):
    losses = [2.0, math.nan, 4.0, 6.0, math.nan, math.nan]
    number = np.zeros(())
    like = StepMetrics(*[number] * 9, PropagatorStats(*[np.zeros(1)] * 4), None)
    dataset = open_dataset(config.data, 0, config.training.global_batch)
    spaced = dataclasses.replace(config, training=dataclasses.replace(config.training, log_every=2))
    workdir.mkdir()
    with (
        Checkpointer(checkpoint_folder(workdir), keep=1) as checkpoints,
        Monitor(spaced, dataset, workdir, 0, abstract_state(config), checkpoints) as report,
    ):
        for step, loss in enumerate(losses, start=1):
            bad = np.int32(math.isnan(loss))
            skipped = {"consecutive": bad, "reason": np.int32(Reason.LOSS), "leaf": np.int32(-1)}
            report.step(step, like._replace(loss=np.float32(loss), nll=np.float32(loss), **skipped))
    lines = {line["step"]: line for line in metrics_of(workdir) if line["split"] == "train"}
    for name in ("loss", "nll"):
        assert [lines[step][name] for step in (2, 4)] == [2.0, 5.0]
        assert math.isnan(lines[6][name])  # none was taken


def at_step(number, action):
    """`Monitor.step` with an action just before one step is reported."""
    original = Monitor.step

    def step(self, step, metrics):
        if step == number:
            action()
        original(self, step, metrics)

    return step


# Learning and what is told about it


def test_a_short_run_learns_more_than_the_frequencies_of_characters(uninterrupted):
    counts = np.array(list(collections.Counter(TEXT).values()))
    share = counts / counts.sum()
    entropy = -(share * np.log(share)).sum()
    lines = metrics_of(uninterrupted)
    (last,) = [line for line in lines if line["split"] == "validation" and line["step"] == STEPS]
    assert last["nll"] < entropy - 0.5
    assert max(line["skipped"] for line in lines if line["split"] == "train") == 0


def test_lines_hold_the_names_that_users_read(uninterrupted):
    lines = [json.loads(line) for line in (uninterrupted / "metrics.jsonl").read_text().splitlines()]
    train_lines = [line for line in lines if line["split"] == "train"]
    validation_lines = [line for line in lines if line["split"] == "validation"]
    assert [line["step"] for line in train_lines] == list(range(10, STEPS + 1, 10))
    assert [line["step"] for line in validation_lines] == [100, 200]
    assert [line["step"] for line in lines if line["split"] == "sample"] == [100, 200]
    seconds = [line["seconds"] for line in lines]
    assert seconds == sorted(seconds)
    lines = train_lines + validation_lines
    both = {"split", "step", "loss", "nll", "bits_per_byte"}
    assert all(line.keys() >= both for line in lines)
    assert all(line.keys() >= {"lr", "lr_scale", "grad_norm", "tokens_per_s", "skipped"} for line in train_lines)
    assert not any("distill" in line for line in lines)
    for line in lines:  # one ASCII character a token
        assert line["bits_per_byte"] == pytest.approx(line["nll"] / math.log(2), rel=1e-12)


def test_the_propagators_tell_of_each_layer(uninterrupted):
    lines = metrics_of(uninterrupted)
    worst = {line["step"]: line for line in lines if line["split"] == "train"}
    health = [line for line in lines if line["split"] == "health"]
    assert [line["step"] for line in health] == [50, 100, 150, 200]
    for line in health:
        for name in ("residual", "norm_drift"):
            assert max(line[name]) == worst[line["step"]][name]
    h_lambda = [line["h_lambda_bound"] for line in health]
    assert len({*map(tuple, h_lambda)}) == len(h_lambda)  # it is learned


def test_a_line_is_the_mean_of_the_steps_since_the_last(config, workdir, monkeypatch):
    seen = []
    original = Monitor.step

    def step(self, step, metrics):
        seen.append(float(metrics.nll))
        original(self, step, metrics)
        if step == 20:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Monitor, "step", step)
    train(config, workdir)
    lines = [line["nll"] for line in metrics_of(workdir) if line["split"] == "train"]
    np.testing.assert_allclose(lines, [np.mean(seen[:10]), np.mean(seen[10:])], rtol=1e-6)


# Stopping and going on


def test_ctrl_c_finishes_the_step_saves_and_gives_the_signal_back(config, workdir, monkeypatch):
    said, before = [], signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(Monitor, "step", at_step(7, lambda: signal.raise_signal(signal.SIGINT)))
    result = train(config, workdir, said.append)
    assert (result.step, result.finished) == (7, False)
    assert math.isfinite(result.validation["nll"])
    assert any("stopping after this step" in line for line in said)
    assert signal.getsignal(signal.SIGINT) is before
    with Checkpointer(checkpoint_folder(workdir), 3) as checkpointer:
        assert checkpointer.latest_step() == 7


def test_a_run_that_nobody_reads_stops_after_the_step_and_saves(config, workdir, monkeypatch):
    seen = []
    monkeypatch.setattr(Monitor, "step", at_step(7, lambda: seen.append(7)))
    result = train(config, workdir, unread=lambda: bool(seen))
    assert (result.step, result.finished) == (7, False)
    with Checkpointer(checkpoint_folder(workdir), 3) as checkpointer:
        assert checkpointer.latest_step() == 7


def test_a_second_ctrl_c_stops_at_once(config, workdir, monkeypatch):
    def twice():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Monitor, "step", at_step(3, twice))
    with pytest.raises(KeyboardInterrupt):
        train(config, workdir)


def test_an_interrupted_run_goes_on_to_the_same_bits(config, workdir, uninterrupted, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(Monitor, "step", at_step(120, lambda: signal.raise_signal(signal.SIGINT)))
        assert train(config, workdir).step == 120
    said = []
    assert train(config, workdir, said.append).finished
    assert "resuming from step 120" in said
    assert differing_leaves(final_state(uninterrupted), final_state(workdir)) == []
    # The evaluation at the interruption is the one thing more that this run has told.
    evaluated = [("validation", 120), ("sample", 120), ("time", 120)]
    lines = [line for line in metrics_of(workdir) if (line["split"], line["step"]) not in evaluated]
    assert len(lines) == len(metrics_of(workdir)) - 4  # the time once after the save, once after the sample
    seconds = [line["seconds"] for line in lines]
    assert seconds == sorted(seconds)  # the second process goes on where the first one ended
    assert repeatable(lines) == repeatable(metrics_of(uninterrupted))


def test_a_crashed_run_goes_on_from_its_checkpoint_to_the_same_bits(config, workdir, uninterrupted, monkeypatch):
    pages = []

    def crash():
        pages.append((workdir / "report.html").read_text(encoding="utf-8"))
        raise OSError("the machine is gone")

    with monkeypatch.context() as patch:
        patch.setattr(Monitor, "step", at_step(183, crash))
        with pytest.raises(OSError, match="the machine is gone"):
            train(config, workdir)
    told = metrics_of(workdir)
    assert told[-1]["step"] == 180
    lost = told[-1]["seconds"] - max(line["seconds"] for line in told if line["step"] <= 150)
    pages.append((workdir / "report.html").read_text(encoding="utf-8"))
    assert ["training, step 100 of 200" in pages[0], 'data-live="yes"' in pages[0]] == [True, True]
    assert ["step 180 of 200" in pages[1], 'data-live="yes"' in pages[1]] == [True, False]
    said = []
    assert train(config, workdir, said.append).finished
    assert "resuming from step 150" in said
    assert differing_leaves(final_state(uninterrupted), final_state(workdir)) == []
    assert repeatable(metrics_of(workdir)) == repeatable(metrics_of(uninterrupted))
    times = [[line for line in metrics_of(run) if line["split"] == "time"] for run in (workdir, uninterrupted)]
    assert [line["step"] for line in times[0]] == [line["step"] for line in times[1]] == [50, 100, 100, 150, 200, 200]
    assert (times[0][-1]["lost_s"], times[1][-1]["lost_s"]) == (pytest.approx(lost, abs=2e-3), 0)
    assert times[0][-1]["restore_s"] > 0 == times[1][-1]["restore_s"]
    for before, after in itertools.pairwise(times[0]):  # the second process adds to what the first one has spent
        assert all(after[name] >= before[name] for name in after if name.endswith("_s"))


def test_a_run_whose_newest_checkpoint_is_damaged_goes_on_only_when_asked(config, workdir, uninterrupted, caplog):
    shutil.copytree(uninterrupted, workdir)
    damaged = checkpoint_folder(workdir) / str(STEPS)
    (damaged / "record" / "metadata").write_text("{")
    for use in (sem_jax.load, lambda folder: train(config, folder)):
        with pytest.raises(sem_jax.CheckpointError, match=r"200 is damaged.*go on from step 150.*--fallback"):
            use(workdir)
    assert sem_jax.load(workdir, fallback=True).step == 150
    assert "step 150 takes its place" in caplog.text
    said = []
    assert train(config, workdir, said.append, fallback=True).finished
    (warning,) = [line for line in said if line.startswith("warning: ")]
    assert f"{damaged} is damaged" in warning
    assert "it is called 200.damaged now" in warning
    assert "resuming from step 150" in said
    assert differing_leaves(final_state(uninterrupted), final_state(workdir)) == []
    assert repeatable(metrics_of(workdir)) == repeatable(metrics_of(uninterrupted))


def test_lost_metrics_are_told_of_and_cost_nothing_else(config, workdir, uninterrupted, capsys):
    shutil.copytree(uninterrupted, workdir)
    (workdir / "metrics.jsonl").write_bytes(b"")
    train(config, workdir)
    assert (
        "warning: the run goes on from step 200, and metrics.jsonl tells nothing after step 0"
        in capsys.readouterr().out
    )
    train(config, uninterrupted)
    assert "warning" not in capsys.readouterr().out


@pytest.mark.parametrize("step", [100, STEPS])
def test_an_evaluation_that_a_kill_has_prevented_is_made_up_for(config, workdir, uninterrupted, monkeypatch, step):
    def killed(self, at, evaluation):
        if at == step:
            raise OSError("the machine is gone")

    with monkeypatch.context() as patch:
        patch.setattr(Monitor, "evaluation", killed)
        with pytest.raises(OSError, match="the machine is gone"):
            train(config, workdir)
    result = train(config, workdir)
    wanted = [line for line in metrics_of(uninterrupted) if (line["split"], line["step"]) != ("validation", 100)]
    found = [line for line in metrics_of(workdir) if (line["split"], line["step"]) != ("validation", 100)]
    assert repeatable(found) == repeatable(wanted)
    assert [line["step"] for line in metrics_of(workdir) if line["split"] == "validation"].count(step) == 1
    last = [line for line in metrics_of(uninterrupted) if line["split"] == "validation"][-1]
    assert result.validation["nll"] == last["nll"]


@pytest.mark.parametrize("step", [100, STEPS])
def test_an_evaluation_that_a_kill_has_cut_off_is_told_of_once(config, workdir, uninterrupted, monkeypatch, step):
    sample = Monitor.sample

    def killed(self, at, text):
        if at == step:
            raise OSError("the machine is gone")
        sample(self, at, text)

    with monkeypatch.context() as patch:
        patch.setattr(Monitor, "sample", killed)
        with pytest.raises(OSError, match="the machine is gone"):
            train(config, workdir)
    assert metrics_of(workdir)[-1]["split"] == "validation"
    train(config, workdir)
    places = [collections.Counter((v["split"], v["step"]) for v in metrics_of(run)) for run in (workdir, uninterrupted)]
    assert places[0] == places[1]


def test_signals_ask_until_the_last_save_is_on_disk(config, workdir, monkeypatch):
    handlers, original = [], Checkpointer.wait

    def wait(self):
        if self._unfinished == STEPS:
            handlers.append(signal.getsignal(signal.SIGTERM))
        original(self)

    monkeypatch.setattr(Checkpointer, "wait", wait)
    assert train(config, workdir).finished
    assert handlers
    assert signal.SIG_DFL not in handlers  # which would end the process, and the save with it


def test_a_signal_within_a_print_is_heard():
    class Asking(io.RawIOBase):
        def writable(self):
            return True

        def write(self, data):
            signal.raise_signal(signal.SIGTERM)
            return len(data)

    output = io.TextIOWrapper(io.BufferedWriter(Asking()), write_through=True)
    with interruptible(lambda line: print(line, file=output, flush=True)) as interrupted:
        print("a step", file=output, flush=True)
        assert interrupted(1)


def test_a_finished_run_started_again_does_nothing(config, uninterrupted):
    before = final_state(uninterrupted), metrics_of(uninterrupted)
    result = train(config, uninterrupted)
    assert (result.step, result.finished) == (STEPS, True)
    assert differing_leaves(before[0], final_state(uninterrupted)) == []
    assert metrics_of(uninterrupted) == before[1]


# Ends that are errors


def test_too_many_bad_steps_end_the_run_with_step_cause_and_checkpoints(config, workdir, monkeypatch):
    class Poisoned(loop.Prefetch):
        def __init__(self, make, steps):
            super().__init__(lambda step: self.poison(step, make(step)), steps)

        @staticmethod
        def poison(step, batch):  # step counts from 0, reports count from 1
            return batch._replace(weights=batch.weights * np.float32(np.nan)) if step >= 51 else batch

    monkeypatch.setattr(loop, "Prefetch", Poisoned)
    with pytest.raises(TrainingDiverged) as error:
        train(config, workdir)
    message = str(error.value)
    assert f"step {51 + HOPELESS}: {HOPELESS} bad steps in a row" in message
    assert "loss" in message
    assert str(checkpoint_folder(workdir)) in message
    assert "learning_rate" in message
    assert "look at the data" in message
    with Checkpointer(checkpoint_folder(workdir), 3) as checkpointer:
        assert checkpointer.latest_step() == 50


def test_bad_input_is_an_error_before_anything_is_trained(config, uninterrupted, workdir, tmp_path):
    with pytest.raises(ConfigError, match=r"training\.seed: 0 -> 1"):
        train(text_config(tmp_path, training__seed=1, data__path=config.data.path), uninterrupted)
    with pytest.raises(DataError, match=r"missing\.txt"):
        train(text_config(tmp_path, data__path=str(tmp_path / "missing.txt")), workdir)
    assert not workdir.exists()


def test_a_second_training_in_a_workdir_is_refused_and_changes_nothing(config, uninterrupted):
    before = (uninterrupted / "metrics.jsonl").read_bytes()
    with locked_workdir(uninterrupted), pytest.raises(ConfigError, match="another process is training"):
        train(config, uninterrupted)
    assert (uninterrupted / "metrics.jsonl").read_bytes() == before


# What a run leaves


def test_the_loaded_model_has_the_loss_that_the_run_reported(config, uninterrupted):
    model = sem_jax.load(uninterrupted)
    assert (model.step, model.config.training.max_steps) == (STEPS, STEPS)
    dataset = open_dataset(config.data, config.training.seed, config.training.global_batch)
    total = weight = 0.0
    for batch in dataset.validation.evaluation_batches(config.training.eval_batches):
        log_probs = np.asarray(model.log_probs(batch.tokens[:, :-1]), np.float64)
        chosen = np.take_along_axis(log_probs, batch.tokens[:, 1:, None], axis=-1)[..., 0]
        total -= (batch.weights * chosen).sum()
        weight += batch.weights.sum()
    *_, reported = (line for line in metrics_of(uninterrupted) if line["split"] == "validation")
    assert total / weight == pytest.approx(reported["nll"], rel=1e-5)


def test_a_run_keeps_the_checkpoint_of_its_lowest_validation_loss_over_restarts(config, workdir, monkeypatch):
    remaining = iter([3.0, 1.5, math.nan, 2.0, 2.5])  # at steps 50 and 100, where it is stopped, and 101, 150 and 200
    evaluator = loop.Evaluator.__call__

    def evaluate(self, parts):
        loss = next(remaining)
        if loss == 1.5:
            signal.raise_signal(signal.SIGTERM)
        found = evaluator(self, parts)
        return found._replace(values=found.values | {"nll": loss})

    monkeypatch.setattr(loop.Evaluator, "__call__", evaluate)
    training = dataclasses.replace(config.training, eval_every=50, keep_checkpoints=1)
    runs = [train(dataclasses.replace(config, training=training), workdir) for _ in range(2)]
    assert [run.finished for run in runs] == [False, True]
    assert sorted(int(path.name) for path in checkpoint_folder(workdir).iterdir()) == [100, 200]
    assert [sem_jax.load(workdir, step).step for step in ("best", None)] == [100, 200]


def test_an_older_checkpoint_is_loaded_on_request(uninterrupted):
    older, newest = sem_jax.load(uninterrupted, step=150), sem_jax.load(uninterrupted)
    assert older.step == 150
    assert "readout/weight" in differing_leaves(older.parts.params, newest.parts.params)
    with pytest.raises(sem_jax.CheckpointError, match=r"no checkpoint 151.*150"):
        sem_jax.load(uninterrupted, step=151)
