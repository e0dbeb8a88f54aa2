"""The command line of the diagnosis, as a user types it."""

import json
import os
import pathlib
import subprocess
import sys

import pytest
from commands import run_module

ROOT = pathlib.Path(__file__).parents[2]

PROGRAM = """
import dataclasses
from absl import app
from sem_jax import diagnose
from sem_jax.diagnosis.record import Component, Diagnosis, MixerLayer, PropagatorLayer
from sem_jax.training.health import Finding

def diagnose_run(workdir, step, fallback):
    print("asked for", workdir, step)
    numbers = dict(rms=1.0, largest=4.0, kurtosis=0.5, tail=float("nan"), entropy=6.0, coherence=0.1)
    wave = Component("encoder.wave", "", 1, [0, 2, 5], numbers, numbers, -0.25, 1e-4, 1e-3, 0, 1.0, 0, 0.3, 0.0)
    mixer, propagator = MixerLayer(0.5, 0.0, 0.6, 2.0, 1.0, 1.0), PropagatorLayer(0.77, 1.6, 5e-7, 8, 8, 1e-7, 1.1)
    suspect = Finding("encoder.wave", "output", float("nan"), 0.0, "optimizer.learning_rate", "encoder.wave: broken")
    return Diagnosis("tiny", 7, 2.5, 64, [wave], None, [mixer], [propagator], 0.0, [], [suspect])

diagnose.diagnose_run = diagnose_run
app.run(diagnose.main, flags_parser=diagnose.parse_flags)
"""


def run(folder, *arguments):
    environment = os.environ | {"SEM_JAX_CACHE": str(folder / "cache"), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment, cwd=folder)


def test_a_diagnosis_is_a_table_suspects_and_json(tmp_path):
    done = run(tmp_path, "-c", PROGRAM, "--workdir=run", "--checkpoint=7", f"--json={tmp_path}/new/found.json")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "asked for run 7"
    assert lines[1] == "tiny, step 7: loss 2.5000 on 64 training tokens"
    (row,) = [line for line in lines if line.startswith("encoder.wave")]
    assert row.split("  ")[1].strip() == "[0, 2, 5]"
    assert "-0.25" in row
    assert lines[-1] == "  1. [config.optimizer.learning_rate] encoder.wave: broken"
    record = json.loads((tmp_path / "new/found.json").read_text())
    assert record["components"][0]["output"] == {
        "rms": 1.0, "largest": 4.0, "kurtosis": 0.5, "tail": None, "entropy": 6.0, "coherence": 0.1,
    }  # fmt: skip
    assert record["suspects"][0]["field"] == "optimizer.learning_rate"
    assert record["propagators"][0]["iterations_bound"] == 8


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--workdir=nothing"], ["nothing/config.json", "python -m sem_jax.train"]),
        (["--config=nowhere.py"], ["nowhere.py"]),
    ],
)
def test_a_broken_input_is_one_line(tmp_path, arguments, parts):
    done = run_module("sem_jax.diagnose", *arguments, folder=tmp_path)
    assert done.returncode == 1
    (error,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "Traceback" not in done.stderr
    assert [part for part in parts if part not in error] == []


@pytest.mark.parametrize("arguments", [[], ["--workdir=a", f"--config={ROOT}/configs/quickstart.py"]])
def test_one_model_must_be_named(tmp_path, arguments):
    done = run_module("sem_jax.diagnose", *arguments, folder=tmp_path)
    assert done.returncode == 1
    assert "give --workdir to examine a run, or --config to examine a fresh model" in done.stdout + done.stderr
