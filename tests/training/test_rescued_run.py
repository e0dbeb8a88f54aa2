"""Real models that diverge and are rescued, by planted faults and by a learning rate that is far too large."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from small import TEXT, differing_leaves, quick_environment, text_config

import sem_jax
from sem_jax.config import build, override, to_config_dict
from sem_jax.testing.faults import Fault, Place, planting
from sem_jax.training import loop
from sem_jax.training.loop import train
from sem_jax.training.metrics import read_metrics
from sem_jax.training.monitor import Monitor
from sem_jax.training.workdir import restore_run

STEPS, DIVERGES, HOPELESS = 12, 7, 3
ROOT = Path(sem_jax.__file__).parents[1]

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("programs")]


def faulty_while_fast(config):
    """Gradients are NaN from one step on, unless the learning rate is low."""
    if config.optimizer.learning_rate <= 6e-4:
        return loop.make_train_step(config)
    steps = range(DIVERGES, DIVERGES + HOPELESS)
    return planting(*[Fault(Place.GRADIENT, step, np.nan) for step in steps])(config)


def interrupting(at, how):
    original = Monitor.step

    def step(self, step, metrics):
        original(self, step, metrics)
        if step == at:
            how()

    return step


def kill():
    raise KeyboardInterrupt


def test_a_rescued_run_has_the_bits_of_one_whose_learning_rate_was_lowered_by_hand(tmp_path):
    config = text_config(
        tmp_path,
        optimizer__learning_rate=1.2e-3,
        optimizer__temperature=1e-7,
        optimizer__guard_max_consecutive=HOPELESS,
        training__checkpoint_every=2,
        training__max_steps=STEPS,
    )
    with pytest.MonkeyPatch.context() as patch:  # killed in the middle, after the faults; resumed without --rescue
        patch.setattr(Monitor, "step", interrupting(DIVERGES + HOPELESS + 1, kill))
        with pytest.raises(KeyboardInterrupt):
            train(config, tmp_path / "rescued", make_step=faulty_while_fast, rescue=True)
    assert train(config, tmp_path / "rescued", make_step=faulty_while_fast).finished

    newest = DIVERGES - 1  # the last checkpoint before the first fault
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Monitor, "step", interrupting(newest, lambda: signal.raise_signal(signal.SIGINT)))
        # The same program, for another one rounds otherwise; its faults come later.
        assert train(config, tmp_path / "by_hand", make_step=faulty_while_fast).step == newest
    slower = build(override(to_config_dict(config).to_dict(), {"optimizer.learning_rate": 6e-4}))
    assert train(slower, tmp_path / "by_hand").finished

    rescued, by_hand = (restore_run(tmp_path / name) for name in ("rescued", "by_hand"))
    assert (rescued.step, by_hand.step) == (STEPS, STEPS)
    assert rescued.config.optimizer.learning_rate == 6e-4
    assert differing_leaves(rescued.state, by_hand.state) == []


EXPERIMENT = """
from ml_collections import ConfigDict
from small import fields

def get_config():
    return ConfigDict(fields(training__max_steps=30, training__checkpoint_every=1, optimizer__learning_rate=1e3))
"""


def test_the_command_saves_a_run_from_a_learning_rate_of_a_thousand(tmp_path):
    (tmp_path / "wild.py").write_text(EXPERIMENT)
    (tmp_path / "text.txt").write_text(TEXT)
    workdir = tmp_path / "run"
    flags = [f"--config={tmp_path}/wild.py", f"--config.data.path={tmp_path}/text.txt", f"--workdir={workdir}"]
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    variables = os.environ | quick_environment() | {"SEM_JAX_CACHE": str(tmp_path / "cache"), "PYTHONPATH": paths}

    def run(*more):
        arguments = [sys.executable, "-m", "sem_jax.train", *flags, *more]
        return subprocess.run(arguments, capture_output=True, text=True, env=variables, cwd=tmp_path, timeout=600)

    lost = run()
    assert lost.returncode == 1
    assert "20 bad steps in a row" in lost.stderr
    assert "train --rescue does so by itself" in lost.stderr
    saved = run("--rescue")
    assert saved.returncode == 0, saved.stderr
    with_rate = "config.optimizer.learning_rate = 0.0006 (it was 1000.0)"
    assert f"its newest sound checkpoint, with {with_rate}" in saved.stdout
    assert "learning_rate = 0.0006 in place of 1000.0, a remedy of --rescue" in saved.stdout  # of the report
    lines = read_metrics(workdir / "metrics.jsonl")
    assert [(line["field"], line["after"]) for line in lines if line["split"] == "rescue"] == [
        ("optimizer.learning_rate", 6e-4)
    ]
    losses = [line["nll"] for line in lines if line["split"] == "train"]
    assert len(losses) >= 14
    assert losses[-1] < losses[0] - 0.05
    longer = run("--config.training.max_steps=32")
    assert longer.returncode == 0, longer.stderr
    assert f"rescued before: the run goes on with {with_rate}" in longer.stdout
