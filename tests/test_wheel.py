"""The wheel: built, installed alone into an empty folder, and put to work from another one."""

from __future__ import annotations

import os
import pathlib
import shutil
import subprocess
import sys
import zipfile

import pytest
from small import TEXT, quick_environment

ROOT = pathlib.Path(__file__).parents[1]
PAGES = ("html", "css", "js", "svg")
SOURCES = ("pyproject.toml", "setup.cfg", "README.md", "LICENSE", "sem_jax", "configs", "tests", "benchmarks")

EXPERIMENT = """
from sem_jax import default

def get_config():
    config = default()
    config.model.update(hidden_dim=16, num_layers=1)
    config.model.propagator.laplacian_sparsity = 3
    config.data.update(source="text", path="text.txt", seq_length=16, split="tail")
    config.optimizer.update(warmup_steps=1, decay_steps=1)
    config.training.update(max_steps=3, global_batch=2, micro_batch=2, log_every=1, eval_batches=1)
    return config
"""


def run(folder, *arguments, **variables):
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=folder,
        env=os.environ | variables,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from a copy, so that what an earlier build left in the checkout cannot get in."""
    source, built = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("built")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, source)
    run(source, "-m", "pip", "wheel", ".", "--no-deps", "--no-build-isolation", f"--wheel-dir={built}")
    (path,) = built.glob("*.whl")
    return path


def test_the_wheel_holds_the_package_with_its_types_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert "sem_jax/py.typed" in names
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "sem_jax").rglob("*.py")}
    assert {name for name in names if name.endswith(".py")} == modules
    pages = {path.relative_to(ROOT).as_posix() for kind in PAGES for path in (ROOT / "sem_jax").rglob(f"*.{kind}")}
    assert "sem_jax/playground/page.html" in pages
    assert pages <= set(names)
    assert {name.split("/")[0].partition("-")[0] for name in names} == {"sem_jax"}


def test_the_installed_wheel_trains_without_the_repository(wheel, tmp_path):
    site, work = tmp_path / "site", tmp_path / "work"
    work.mkdir()
    (work / "experiment.py").write_text(EXPERIMENT)
    (work / "text.txt").write_text(TEXT)
    run(work, "-m", "pip", "install", "--no-deps", "--no-index", "--no-compile", f"--target={site}", wheel)
    # Three steps are far shorter than the optimisation of their program.
    alone = {"PYTHONPATH": str(site), "SEM_JAX_CACHE": str(work / "cache")} | quick_environment()
    imported = run(work, "-c", "import importlib.util as u; print(u.find_spec('sem_jax').origin)", **alone)
    assert pathlib.Path(imported.strip()).is_relative_to(site)
    printed = run(work, "-m", "sem_jax.train", "--config=experiment.py", "--workdir=run", **alone)
    assert "step 3/3" in printed
    assert (work / "run" / "metrics.jsonl").is_file()
    assert (work / "run" / "report.html").is_file()
