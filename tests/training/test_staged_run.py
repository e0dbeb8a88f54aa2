"""A whole run with two stages, on real programs."""

import signal

import numpy as np
import pytest
from small import differing_leaves, text_config

from sem_jax.training import loop
from sem_jax.training.loop import train
from sem_jax.training.metrics import read_metrics
from sem_jax.training.monitor import Monitor
from sem_jax.training.workdir import restore_run

STEPS, DUE, BAD = 12, 5, 4
REGROWTH = 3
BEGUN = BAD + REGROWTH

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("programs")]


def with_a_bad_step(config):
    """A step whose batch is spoilt once, just before the second stage is due."""
    train_step = loop.make_train_step(config)

    def step(state, batch):
        weights = batch.weights * (np.nan if int(state.step) + 1 == BAD else 1)
        return train_step(state, batch._replace(weights=weights))

    return step


def begun(workdir):
    lines = [line for line in read_metrics(workdir / "metrics.jsonl") if line["split"] == "stage" and "tokens" in line]
    return [(line["step"], line["tokens"], line["seq_length"], line["global_batch"]) for line in lines]


def test_a_staged_run_stopped_at_every_step_has_the_bits_of_one_that_was_not(tmp_path):
    config = text_config(
        tmp_path,
        optimizer__temperature=1e-7,
        optimizer__guard_regrow_steps=REGROWTH,
        training__ema_decay=0.9,
        training__distill_weight=0.25,  # the loss depends on the size of the batch
        training__stages=f"{DUE}:24x2/1",
        training__max_steps=STEPS,
    )
    assert train(config, tmp_path / "whole", make_step=with_a_bad_step).finished
    with pytest.MonkeyPatch.context() as patch:
        original = Monitor.step

        def step(self, step, metrics):
            signal.raise_signal(signal.SIGINT)
            original(self, step, metrics)

        patch.setattr(Monitor, "step", step)
        for stop in range(1, STEPS + 1):
            assert train(config, tmp_path / "parts", make_step=with_a_bad_step).step == stop
    assert begun(tmp_path / "parts") == begun(tmp_path / "whole") == [(BEGUN, BEGUN * 64, 24, 2)]
    whole, parts = restore_run(tmp_path / "whole"), restore_run(tmp_path / "parts")
    assert (whole.step, differing_leaves(whole.state, parts.state)) == (STEPS, [])
    assert int(whole.state.opt_state.skipped) == 1
