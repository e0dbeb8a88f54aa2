"""The tutorial: each command and each example of it, in its order, with a small experiment for the quickstart."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from commands import run_module
from small import TEXT, quick_environment

from sem_jax.__main__ import COMMANDS
from sem_jax.config import default, lookup

ROOT = Path(__file__).parents[1]
BLOCKS = re.findall(
    r"^```(sh|python)\n(.*?)^```$", (ROOT / "docs" / "tutorial.md").read_text(), re.DOTALL | re.MULTILINE
)
TYPED = [shlex.split(line) for kind, block in BLOCKS if kind == "sh" for line in block.splitlines()]
EXPERIMENT = """
from small import fields

from sem_jax.config import default

def get_config():
    config = default()
    config.update(fields(name="quickstart", data__path="text.txt"))
    return config
"""


def training_of_make():
    (line,) = re.findall(r"^train: .*\n\t(.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert line.startswith("$(BIN)/python -m sem_jax.")
    return line.split(" -m sem_jax.")[1].split()


def test_every_example_can_be_read_and_every_command_and_field_exists():
    for kind, block in BLOCKS:
        if kind == "python":
            compile(block, "docs/tutorial.md", "exec")
    assert len(TYPED) > 8
    for words in TYPED:
        assert words == ["make", "train"] or (words[0] == ".venv/bin/sem-jax" and words[1] in COMMANDS), words
        for flag in words:
            if flag.startswith("--config."):
                lookup(default(), flag.removeprefix("--config.").partition("=")[0])


@pytest.mark.slow
def test_the_tutorial_can_be_followed(tmp_path):
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "quickstart.py").write_text(EXPERIMENT)
    (tmp_path / "text.txt").write_text(TEXT)
    paths = os.pathsep.join(map(str, [tmp_path, ROOT, ROOT / "tests"]))
    variables = quick_environment() | {"PYTHONPATH": paths, "SEM_JAX_CACHE": str(tmp_path / "cache")}
    printed = []
    for kind, block in BLOCKS:
        if kind == "python":
            printed.append(run_program(block, tmp_path, variables))
            continue
        for line in block.splitlines():
            words = shlex.split(line)
            command, *flags = training_of_make() if words[0] == "make" else words[1:]
            if command == "play":
                watch_it_serve(flags, tmp_path, variables)
                continue
            done = run_module(f"sem_jax.{command}", *flags, folder=tmp_path, variables=variables)
            assert done.returncode == 0, (line, done.stderr)
            printed.append(done.stdout)
    everything = "\n".join(printed)
    assert "step 14: skipped, gradient not finite or too large in mixers/out_proj" in everything  # of 12 + 4 steps
    assert "suspects" in everything
    assert (tmp_path / "runs" / "both.html").is_file()


def run_program(text, folder, variables):
    arguments = [sys.executable, "-c", text]
    done = subprocess.run(
        arguments, cwd=folder, env=os.environ | variables, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def watch_it_serve(flags, folder, variables):
    arguments = [sys.executable, "-m", "sem_jax.play", *flags, "--port=0"]
    with subprocess.Popen(
        arguments, cwd=folder, env=os.environ | variables, stdout=subprocess.PIPE, text=True
    ) as process:
        lines = iter(process.stdout)
        assert any(line.startswith("open http://127.0.0.1:") for line in lines)
        process.send_signal(signal.SIGINT)
        assert next(lines) == "stopped\n"
        assert process.wait(timeout=60) == 0
