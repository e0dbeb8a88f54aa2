"""The campaigns of survival.py: what they would call a loss, and three kills of a real run."""

from __future__ import annotations

import json
import random

import pytest
import survival
import survival_night
import survival_runs

from sem_jax.testing.faults import Fault, Place


def metrics(*lines, speed=1.0):
    records = [{"split": split, "step": step, "loss": loss, "tokens_per_s": speed} for split, step, loss in lines]
    return b"".join(json.dumps(record).encode() + b"\n" for record in records)


WHOLE = [("train", 1, 3.0), ("train", 2, 2.5), ("validation", 2, 2.6), ("train", 3, 2.0)]


def test_speed_and_an_evaluation_at_a_stop_are_no_loss():
    stopped = [*WHOLE[:1], ("validation", 1, 3.1), ("sample", 1, 0.0), ("time", 1, 0.0), ("time", 1, 0.0), *WHOLE[1:]]
    assert survival_runs.metrics_faults(metrics(*stopped, speed=2.0), metrics(*WHOLE)) == []


@pytest.mark.parametrize(
    ("lines", "fault"),
    [
        ([*WHOLE[:1], *WHOLE], "train 1 stands 2 times"),
        (WHOLE[1:], "train 1 is missing"),
        ([*WHOLE[:2], WHOLE[3]], "validation 2 is missing"),
        ([*WHOLE, ("skip", 3, 2.0)], "skip 3 is new"),
        ([("train", 1, 3.0000001), *WHOLE[1:]], "train 1 has other values"),
    ],
)
def test_a_line_that_is_repeated_lost_new_or_changed_is_named(lines, fault):
    assert survival_runs.metrics_faults(metrics(*lines), metrics(*WHOLE)) == [fault]


def test_a_torn_line_is_a_loss():
    torn = metrics(*WHOLE)[:-1]
    assert survival_runs.metrics_faults(torn, metrics(*WHOLE)) == ["metrics.jsonl ends within a line"]


def test_a_life_tells_how_far_it_came(tmp_path):
    life = survival_runs.Life(tmp_path, tmp_path, [])
    (tmp_path / "output.0").write_text("resuming from step 15\nstep  16/200  loss 2\nstep  17/200  loss 2\nstep 1")
    assert (life.resumed_from(), life.last_step()) == (15, 17)
    (tmp_path / "output.0").write_text("sem: 3,966 parameters")
    assert (life.resumed_from(), life.last_step()) == (None, 0)


def test_a_start_from_another_checkpoint_than_the_newest_is_a_loss(tmp_path):
    campaign = survival.Campaign(survival.Undisturbed(None, tmp_path, 1.0), random.Random(0))
    life = survival_runs.Life(tmp_path, tmp_path, [])
    (tmp_path / "output.0").write_text("resuming from step 15\nstep 16/200  loss 2\n")
    campaign._check_start(life, durable=15, reached=22)
    assert (campaign.lost, campaign.most_repeated) == ([], 7)
    campaign._check_start(life, durable=20, reached=22)
    assert campaign.lost == ["went on from 15, though 20 was on disk"]


def test_only_complete_checkpoints_are_saved(tmp_path):
    for name in ("5", "10", "15.orbax-checkpoint-tmp"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    assert survival_runs.saved_steps(tmp_path) == [5, 10]
    assert survival_runs.unfinished(tmp_path) == {"15.orbax-checkpoint-tmp"}


@pytest.mark.parametrize(
    ("said", "status", "twice", "good"),
    [
        ("stopped and saved at step 10; go on", 75, False, True),
        ("stopped and saved at step 9; go on", 75, False, False),  # 10 is on disk
        ("error: stopped at once; what was saved last is kept", 130, True, True),
        ("error: stopped at once; what was saved last is kept", 130, False, False),
        ("Traceback (most recent call last)", 75, False, False),
        ("", -15, False, False),
        ("", None, True, False),
        ("", 0, False, True),  # it had come to its end
    ],
)
def test_an_end_without_message_status_or_checkpoint_is_a_loss(tmp_path, said, status, twice, good):
    (tmp_path / "checkpoints" / "10").mkdir(parents=True)
    (tmp_path / "output.0").write_text(f"step 10/200  loss 2\n{said}\n")
    life = survival_runs.Life(tmp_path, tmp_path, [])
    assert (survival._wrongly_stopped(life, status, training=True, twice=twice) == []) is good


PLANTED = [Fault(Place.LOSS, 50, 1e30, "readout/weight"), Fault(Place.UPDATE, 100, 1e30, "readout/weight")]
NAMED = [
    {"split": "skip", "step": 50, "reason": "loss"},
    {"split": "skip", "step": 100, "reason": "update", "leaf": "readout/weight"},
]


def night(loss=2.0, compilations=(9, 9), memory=(1000, 1000), logged=10, lines=()):
    samples = [(step, *each) for step, each in zip((2000, 20_000), zip(compilations, memory, strict=True), strict=True)]
    return survival_night.Night(samples, [{"split": "validation", "step": 20_000, "nll": loss}, *lines], logged)


def test_every_fault_is_named_by_step_cause_and_leaf():
    assert survival_night.unnamed(NAMED, PLANTED) == []
    assert "step 50" in survival_night.unnamed(NAMED[1:], PLANTED)[0]
    assert "step 100" in survival_night.unnamed([NAMED[0], NAMED[1] | {"leaf": "encoder"}], PLANTED)[0]
    assert survival_night.unnamed([*NAMED, NAMED[0] | {"step": 7}], PLANTED) == ["step 7: skipped without a fault"]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({}, ""),
        ({"loss": 2.2}, "ended at 2.2000"),
        ({"compilations": (9, 10)}, "compiled 1 times"),
        ({"memory": (1000, 1100)}, "memory 1,000 -> 1,100 bytes"),
        ({"logged": 2**21}, "2,097,152 bytes of logs"),
    ],
)
def test_a_night_with_another_end_more_memory_programs_or_logs_is_a_loss(change, told):
    clean = [night(2.0), night(2.05), night(1.95)]
    found = survival_night.losses([night(lines=NAMED, **change), *clean], PLANTED)
    assert len(found) == bool(told)
    assert told in "".join(found)


def test_the_table_counts_what_was_lost():
    rows = {"kill -9": {"tried": 3, "lost": ["x differs"], "runs": 1, "torn lines": 0}}
    assert "| kill -9 | 3     | 2        | 1    | runs: 1, torn lines: 0 |" in survival.as_table(rows)


@pytest.mark.slow
def test_a_run_survives_three_kills(tmp_path, monkeypatch):
    monkeypatch.setattr(survival, "_WINDOW", 0.5)
    row = survival.kills(tmp_path, random.Random(0), survival.Counts(kills=3, run_steps=40))
    assert (row.tried, row.lost) == (3, [])
