"""Runs that diverge and are rescued: which remedy comes when, and what a later start knows of it.

The loop, its checkpoints and its records are real, the programs are stand-ins; `test_rescued_run.py` has real ones.
"""

import dataclasses
import json

import numpy as np
import pytest
from small import config as small_config
from small import differing_leaves, text_config
from stand_ins import take_step

from sem_jax.config import ConfigError, build, lookup, override
from sem_jax.data.seal import sealed
from sem_jax.report import report
from sem_jax.training.loop import train
from sem_jax.training.metrics import read_metrics
from sem_jax.training.monitor import Monitor, TrainingDiverged
from sem_jax.training.rescue import Remedy, next_remedy, with_remedies
from sem_jax.training.workdir import checkpoint_folder, read_config, recorded_remedies, restore_run

pytestmark = pytest.mark.usefixtures("stand_in_programs")
STEPS, HOPELESS = 12, 3
DIVERGES = 7  # the first bad step
LR, T, CG = "optimizer.learning_rate", "optimizer.temperature", "model.propagator.cg_max_iter"


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """The report's settings, on which every remedy changes something."""
    return text_config(
        tmp_path_factory.mktemp("data"),
        model__propagator__solver="cg",
        model__propagator__cg_max_iter=3,
        optimizer__learning_rate=1.2e-3,
        optimizer__temperature=1e-5,
        optimizer__guard_max_consecutive=HOPELESS,
        training__max_steps=STEPS,
        training__checkpoint_every=2,
    )


def diverging_while(unstable, first=DIVERGES, until=STEPS, seen=None):
    """A step that is bad from the `first` to the `until` one as long as `unstable(config)` holds."""

    def make_step(config):
        def step(state, batch):
            number = int(state.step) + 1
            if seen is not None:
                seen.append((number, *(lookup(config, field) for field in (LR, T, CG))))
            # What a state has gone through shows in its parameters.
            rate, cold = config.optimizer.learning_rate, config.optimizer.temperature == 0
            bad = unstable(config) and first <= number <= until
            return take_step(state, batch, add=rate + cold + config.model.propagator.cg_max_iter, bad=bad)

        return step

    return make_step


def always(config):
    return True


def fast(config):
    return config.optimizer.learning_rate > 6e-4


def warm(config):
    return config.optimizer.temperature > 0


def hasty(config):
    return config.model.propagator.cg_max_iter < 10


def changes_told(workdir):
    lines = [line for line in read_metrics(workdir / "metrics.jsonl") if line["split"] == "rescue"]
    return [(line["step"], line["field"], line["before"], line["after"]) for line in lines]


@pytest.mark.parametrize(
    ("unstable", "changed"),
    [
        pytest.param(fast, {LR: 6e-4}, marks=pytest.mark.slow),
        (hasty, {LR: 6e-4, T: 0.0, CG: 10}),
    ],
)
def test_remedies_come_one_at_a_time_until_one_helps(config, tmp_path, unstable, changed):
    said, seen = [], []
    assert train(config, tmp_path, said.append, diverging_while(unstable, seen=seen), rescue=True).finished
    before = {field: lookup(config, field) for field in changed}
    assert changes_told(tmp_path) == [(DIVERGES - 1, field, before[field], changed[field]) for field in changed]
    # One attempt a remedy, each from the newest checkpoint and with all that was changed so far.
    values, attempts = {field: lookup(config, field) for field in (LR, T, CG)}, []
    for remedy in [None, *changed]:
        if remedy is not None:
            values[remedy] = changed[remedy]
        start = 1 if remedy is None else DIVERGES
        stop = STEPS if remedy == list(changed)[-1] else DIVERGES + HOPELESS
        attempts += [(step, *values.values()) for step in range(start, stop + 1)]
    assert seen == attempts
    recorded = read_config(tmp_path)
    assert {field: lookup(recorded, field) for field in changed} == changed
    assert [remedy[:3] for remedy in recorded_remedies(tmp_path)] == [(f, before[f], changed[f]) for f in changed]
    cause = f"step {DIVERGES + HOPELESS - 1}: 3 bad steps in a row, the last one for this cause: loss not finite"
    assert all(remedy.cause.startswith(cause) for remedy in recorded_remedies(tmp_path))
    for field in changed:
        start = f"rescue: the run goes on from step {DIVERGES - 1}, its newest sound checkpoint, with config.{field}"
        assert any(line.startswith(start) for line in said)
    assert f"- from step {DIVERGES - 1} on {LR} = 0.0006 in place of 0.0012, a remedy of --rescue" in report(tmp_path)


def test_a_run_that_nothing_helps_ends_with_all_that_was_tried(config, tmp_path):
    tried = (
        r"step 9: 3 bad steps in a row.*No remedy is left; --rescue has tried "
        r"config.optimizer.learning_rate = 0.0006 \(it was 0.0012\), then config.optimizer.temperature = 0.0 "
        r"\(it was 1e-05\), then config.model.propagator.cg_max_iter = 10 \(it was 3\)"
    )
    for _ in range(2):  # each is taken once in the life of a run
        with pytest.raises(TrainingDiverged, match=tried):
            train(config, tmp_path, make_step=diverging_while(always), rescue=True)
        assert len(recorded_remedies(tmp_path)) == len(changes_told(tmp_path)) == 3


def test_without_rescue_a_run_ends_and_its_message_names_the_way_out(config, tmp_path):
    with pytest.raises(TrainingDiverged, match="train --rescue does so by itself"):
        train(config, tmp_path, make_step=diverging_while(fast))
    assert recorded_remedies(tmp_path) == changes_told(tmp_path) == []


@pytest.mark.slow
def test_a_rescued_run_killed_in_the_middle_goes_on_with_its_remedies_to_the_same_bits(config, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert train(config, whole, make_step=diverging_while(warm), rescue=True).finished
    original = Monitor.step

    def step(self, step, metrics):
        original(self, step, metrics)
        if step == DIVERGES + 4:  # after all bad steps
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Monitor, "step", step)
        with pytest.raises(KeyboardInterrupt):
            train(config, parts, make_step=diverging_while(warm), rescue=True)
    said = []
    assert train(config, parts, said.append, diverging_while(warm)).finished
    assert said[0] == (
        "rescued before: the run goes on with config.optimizer.learning_rate = 0.0006 (it was 0.0012); any other value "
        "that is given wins"
    )
    assert not any("changed since" in line for line in said)
    runs = [restore_run(workdir) for workdir in (whole, parts)]
    assert [run.step for run in runs] == [STEPS, STEPS]
    assert differing_leaves(*(run.state for run in runs)) == []
    assert changes_told(parts) == changes_told(whole)


def test_a_value_given_after_a_rescue_wins(config, tmp_path):
    train(config, tmp_path, make_step=diverging_while(warm), rescue=True)
    chosen = build(override(dataclasses.asdict(config), {LR: 3e-4, "training.max_steps": STEPS + 1}))
    said, seen = [], []
    train(chosen, tmp_path, said.append, diverging_while(always, first=99, seen=seen))
    assert seen == [(STEPS + 1, 3e-4, 0.0, 3)]
    assert "changed since the last start: optimizer.learning_rate: 0.0006 -> 0.0003" in said
    assert sum("rescued before" in line for line in said) == 1


@pytest.mark.slow
def test_a_rescue_opens_no_other_field_of_the_model(config, tmp_path):
    train(config, tmp_path, make_step=diverging_while(hasty), rescue=True)
    for changes in ({CG: 12}, {"model.propagator.cayley_dt": 0.2}):
        with pytest.raises(ConfigError, match="holds a run with another configuration"):
            train(build(override(dataclasses.asdict(config), changes)), tmp_path, make_step=diverging_while(hasty))


def test_a_run_without_a_checkpoint_begins_anew(config, tmp_path):
    said = []
    assert train(config, tmp_path, said.append, diverging_while(fast, first=1), rescue=True).finished
    assert any(line.startswith("rescue: the run begins anew with config.optimizer.learning_rate") for line in said)
    assert changes_told(tmp_path) == [(0, LR, 1.2e-3, 6e-4)]


def test_a_checkpoint_that_is_not_finite_is_set_aside(config, tmp_path):
    def make_step(config):
        def step(state, batch):
            number = int(state.step) + 1
            poison = np.nan if fast(config) and number == DIVERGES - 1 else 0
            return take_step(state, batch, add=poison, bad=fast(config) and number >= DIVERGES)

        return step

    said = []
    assert train(config, tmp_path, said.append, make_step, rescue=True).finished
    assert f"rescue: {checkpoint_folder(tmp_path) / '6'} is not sound; it is called 6.damaged now" in said
    assert changes_told(tmp_path) == [(4, LR, 1.2e-3, 6e-4)]


@pytest.mark.slow
def test_a_remedy_is_told_of_again_where_the_run_goes_back_behind_it(config, tmp_path):
    """The lines after the checkpoint are dropped; what is in effect must not be forgotten with them."""

    def make_step(config):
        def step(state, batch):
            number = int(state.step) + 1
            poison = np.nan if warm(config) and number in (4, 6) else 0
            return take_step(state, batch, add=poison, bad=warm(config) and number >= DIVERGES)

        return step

    assert train(config, tmp_path, make_step=make_step, rescue=True).finished
    assert changes_told(tmp_path) == [(2, LR, 1.2e-3, 6e-4), (2, T, 1e-5, 0.0)]


# Which remedy is next


def following(config, taken=(), said=None):
    return next_remedy(config, taken, "cause", (said if said is not None else []).append)


@pytest.mark.parametrize(("rate", "after"), [(1e3, 6e-4), (1.2e-3, 6e-4), (6e-4, 3e-4), (1e-4, 5e-5)])
def test_the_learning_rate_is_the_reports_or_half_of_a_lower_one(rate, after):
    assert following(small_config(optimizer__learning_rate=rate)) == Remedy(LR, rate, after, "cause")


def test_what_would_change_nothing_is_passed_over_and_said_so():
    said = []
    done = [Remedy(LR, 1e-2, 6e-4, "")]
    assert following(small_config(model__propagator__solver="dense"), done, said) is None
    assert said == [
        f"rescue: config.{T} is passed over: it is 0 already",
        f"rescue: config.{CG} is passed over: solver = dense does not get better by it",
    ]
    said.clear()
    assert (
        following(small_config(model__propagator__solver="cg", model__propagator__cg_max_iter=20), done, said) is None
    )
    assert said[1:] == [f"rescue: config.{CG} is passed over: it is 20 already"]


def test_a_posterior_temperature_becomes_zero():
    config = small_config(optimizer__thermostat="posterior", model__likelihood="coherent")
    remedy = following(config, [Remedy(LR, 1e-2, 6e-4, "")])
    assert remedy[:3] == ("optimizer.thermostat", "posterior", "fixed")
    cold = with_remedies(config, [remedy])
    assert (cold.optimizer.thermostat, cold.optimizer.temperature) == ("fixed", 0)


def test_a_damaged_record_of_remedies_is_named(tmp_path):
    record = {"config": dataclasses.asdict(small_config()), "data_fingerprint": "f"}
    wrong = [3, [3], [["optimizer.b1", 0.9, 0.5, "why"]], [[LR, 1e-3, 6e-4]], [[LR, 1e-3, 6e-4, None]]]
    for remedies in wrong:
        (tmp_path / "config.json").write_text(json.dumps(sealed(record | {"remedies": remedies})))
        with pytest.raises(ConfigError, match=r"config\.json is damaged \(KeyError: 'remedies'\)"):
            read_config(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(sealed(record | {"remedies": [[LR, 1e-3, 6e-4, "why"]]})))
    assert read_config(tmp_path) == small_config()
