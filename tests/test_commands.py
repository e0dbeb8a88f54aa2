"""The command lines as a user types them: what they print, and how they fail."""

import json
import os
import pathlib
import signal
import subprocess
import sys

import pytest
from small import TEXT

ROOT = pathlib.Path(__file__).parents[1]
EXPERIMENT = """
from ml_collections import ConfigDict
from small import fields

def get_config():
    return ConfigDict(fields(name="tiny", training__log_every=1, training__max_steps=400))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An experiment and its text; caches go here, too."""
    folder = tmp_path_factory.mktemp("commands")
    (folder / "tiny.py").write_text(EXPERIMENT)
    (folder / "text.txt").write_text(TEXT)
    return folder


def environment(folder):
    paths = [str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")]
    return os.environ | {"SEM_JAX_CACHE": str(folder / "cache"), "PYTHONPATH": os.pathsep.join(paths)}


def command(module, *flags):
    return [sys.executable, "-m", f"sem_jax.{module}", *map(str, flags)]


def training(folder, workdir, *flags):
    text = folder / "text.txt"
    return command("train", f"--config={folder}/tiny.py", f"--config.data.path={text}", f"--workdir={workdir}", *flags)


def run(folder, arguments):
    return subprocess.run(arguments, capture_output=True, text=True, timeout=300, env=environment(folder), cwd=folder)


def assert_is_one_line_error(done, *parts):
    assert done.returncode == 1
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "Traceback" not in done.stderr
    assert [part for part in parts if part not in errors[0]] == []


def test_a_missing_workdir_is_one_line(folder, tmp_path):
    missing = tmp_path / "nothing"
    assert_is_one_line_error(run(folder, command("generate", f"--workdir={missing}")), str(missing), "sem_jax.train")
    assert not missing.exists()


def test_an_impossible_value_is_one_line(folder, tmp_path):
    done = run(folder, training(folder, tmp_path / "run", "--config.model.hidden_dim=15"))
    assert_is_one_line_error(done, "config.model.mixer.num_groups = 2", "config.model.hidden_dim = 15")
    assert not (tmp_path / "run").exists()


def test_a_mistyped_field_is_one_line(folder, tmp_path):
    done = run(folder, training(folder, tmp_path / "run", "--config.optimizer.learningrate=1"))
    assert_is_one_line_error(done, "learningrate", "learning_rate")


@pytest.mark.parametrize(
    ("statement", "parts"),
    [
        ("config.model.update(hiden_dim=3)", ["KeyError", 'Did you mean "hidden_dim"']),
        ("config.modle.hidden_dim = 3", ["AttributeError", 'Did you mean "model"']),
        ("config.model.hidden_dim = 'wide'", ["TypeError", "hidden_dim"]),
        ("import nowhere", ["No module named 'nowhere'"]),
        ("{}['abc']", ["KeyError: abc"]),
        ("open('nowhere.txt')", ["No such file", "nowhere.txt"]),
        ("raise ValueError('first' + chr(10) + 'second')", ["ValueError: first second"]),
    ],
)
def test_an_error_inside_a_config_file_is_one_line_with_its_place(folder, tmp_path, statement, parts):
    path = tmp_path / "wrong.py"
    path.write_text(
        "from sem_jax.config import default\n"
        "def get_config():\n"
        "    config = default()\n"
        f"    {statement}\n"
        "    return config\n"
    )
    done = run(folder, command("train", f"--config={path}", f"--workdir={tmp_path}/run"))
    assert_is_one_line_error(done, f"correct line 4 of {path}", *parts)
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("flag", "parts"),
    [
        ("--config.modle.x=3", ["--config has no such field", 'Did you mean "model"']),
        ("--config.training.max_steps=many", ["--config.training.max_steps=many", "not a whole number"]),
        (
            "--config.training.max_steps=-1e0",
            ["max_steps = -1 must be at least 1", "length of the run"],
        ),
        ("--confg=x.py", ["Unknown command line flag 'confg'", "--help"]),
    ],
)
def test_a_wrong_flag_is_one_line(folder, tmp_path, flag, parts):
    assert_is_one_line_error(run(folder, training(folder, tmp_path / "run", flag)), *parts)


def test_a_variant_that_does_not_exist_is_one_line(folder, tmp_path):
    path = ROOT / "configs" / "max_aggression.py"
    done = run(folder, command("train", f"--config={path}:smke", f"--workdir={tmp_path}/run"))
    assert_is_one_line_error(done, "no variant 'smke'", "choose seed, fineweb_edu or smoke")


def test_a_power_of_ten_is_a_whole_number(folder, tmp_path):
    done = run(folder, training(folder, tmp_path / "run", "--config.training.max_steps=1e0"))
    assert_is_one_line_error(done, "must fit in config.training.max_steps = 1")


def test_help_lists_every_field_with_meaning_and_range(folder):
    done = run(folder, command("train", "--help"))
    text = " ".join(done.stdout.split())
    assert "--config.model.hidden_dim=128: D, width of the wave [at least 1 and at most 65_536; channels]" in text
    assert "--config.sampling.context_length=0: " in text


def test_a_missing_config_file_is_one_line(folder, tmp_path):
    done = run(folder, command("train", "--config=nowhere.py", f"--workdir={tmp_path}/run"))
    assert_is_one_line_error(done, "nowhere.py", "No such file")


def test_a_missing_data_file_is_one_line(folder, tmp_path):
    done = run(folder, training(folder, tmp_path / "run", "--config.data.path=nowhere/text.txt"))
    assert_is_one_line_error(done, "nowhere/text.txt")


def test_a_stopped_training_prints_the_command_that_goes_on(folder, tmp_path):
    program = (
        "from absl import app\n"
        "from sem_jax import train\n"
        "from sem_jax.training.loop import TrainResult\n"
        "train.train = lambda config, workdir: TrainResult(7, False, {})\n"
        "app.run(train.main)\n"
    )
    flags = training(folder, tmp_path / "a run")[3:]
    done = run(folder, [sys.executable, "-c", program, *flags])
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    assert line.startswith("stopped and saved at step 7; go on with: python -m sem_jax.train --config=")
    assert f"'--workdir={tmp_path / 'a run'}'" in line


def test_evaluation_reads_the_runs_configuration_with_the_changes_given(folder, tmp_path):
    program = (
        "import math\n"
        "from types import SimpleNamespace\n"
        "import numpy as np\n"
        "from absl import app\n"
        "from small import config\n"
        "from sem_jax import evaluate\n"
        "from sem_jax.modules.propagator import PropagatorStats\n"
        "from sem_jax.training.evaluation import Evaluation\n"
        "values = dict(nll=math.log(8), bits_per_byte=1.5, norm_drift=1e-7, residual=2e-7, iterations=8)\n"
        "stats = PropagatorStats(np.array([2e-2]), np.array([8]), np.array([1e-7]), np.array([1.5]))\n"
        "parts = SimpleNamespace(graphdef=None, params=None, buffers=None)\n"
        "evaluate.load = lambda workdir, step: SimpleNamespace(config=config(), parts=parts)\n"
        "def open_dataset(data, seed, batch):\n"
        "    print(data.seq_length, data.validation_fraction, data.tokenizer_path, batch)\n"
        "    return SimpleNamespace(validation_tokens=1234)\n"
        "evaluate.open_dataset = open_dataset\n"
        "evaluate.Evaluator = lambda *_: lambda *_: Evaluation(values, stats)\n"
        "app.run(evaluate.main)\n"
    )
    flags = [f"--workdir={tmp_path}", "--config.data.seq_length=8", "--config.training.global_batch=8"]
    done = run(folder, [sys.executable, "-c", program, *flags])
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == f"8 0.1 {tmp_path / 'tokenizer.json'} 8"  # 0.1 is the run's, not the default
    assert {"bits/byte      1.5000", "perplexity     8.000", "iterations     8"} <= set(lines)
    assert "1,234 tokens" in done.stdout
    assert lines[-1].startswith("warning: propagator layer 0: dense left a residual of 2.0e-02")


@pytest.mark.slow
def test_train_stop_resume_evaluate_generate_report(folder, tmp_path):
    workdir = tmp_path / "run"
    arguments = training(folder, workdir)
    with subprocess.Popen(
        arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(folder), cwd=folder
    ) as process:
        seen = []
        for line in process.stdout:
            seen.append(line)
            if line.startswith("step   3/"):
                process.send_signal(signal.SIGINT)
        assert process.wait(timeout=300) == 0, process.stderr.read()
    assert seen[0].startswith("tiny: ")
    assert seen[-1].startswith("stopped and saved at step ")
    assert "go on with: python -m sem_jax.train --config=" in seen[-1]

    done = run(folder, arguments)
    assert done.returncode == 0, done.stderr
    assert f"resuming from step {seen[-1].split('step ')[1].split(';')[0]}\n" in done.stdout
    assert (workdir / "report.md").read_text() in done.stdout
    steps = [json.loads(line)["step"] for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert (min(steps), max(steps)) == (1, 400)

    evaluated = run(folder, command("evaluate", f"--workdir={workdir}"))
    assert evaluated.returncode == 0, evaluated.stderr
    values = dict(line.rsplit(maxsplit=1) for line in evaluated.stdout.splitlines()[2:])
    last = json.loads((workdir / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["split"] == "validation"
    assert float(values["nats/token"]) == pytest.approx(last["nll"], abs=1e-4)
    assert float(values["bits/byte"]) == pytest.approx(last["bits_per_byte"], abs=1e-4)
    assert {"perplexity", "norm drift", "residual", "iterations"} <= values.keys()

    shorter = run(folder, command("evaluate", f"--workdir={workdir}", "--config.data.seq_length=4"))
    assert shorter.returncode == 0, shorter.stderr
    (line,) = [line for line in shorter.stdout.splitlines() if line.startswith("nats/token")]
    assert float(line.split()[1]) > last["nll"]  # less context

    texts = [
        run(folder, command("generate", f"--workdir={workdir}", "--prompt=the ", "--max_tokens=20", f"--seed={seed}"))
        for seed in (0, 0, 1)
    ]
    assert [done.returncode for done in texts] == [0, 0, 0], texts[0].stderr
    first, again, other = (done.stdout for done in texts)
    assert first.startswith("the ")
    assert len(first) == len("the ") + 20 + 1  # and the end of the line
    assert first == again != other

    reported = run(folder, command("report", f"--workdir={workdir}"))
    assert reported.stdout.strip() == (workdir / "report.md").read_text().strip()
