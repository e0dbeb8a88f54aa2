"""The experiments in configs/: each is valid and says how it is run."""

import dataclasses
import importlib.util
import pathlib
import re
from types import SimpleNamespace

import pytest

from sem_jax.config import build
from sem_jax.data.tokenizers import ByteTokenizer
from sem_jax.training.workdir import prepare_workdir

FOLDER = pathlib.Path(__file__).parents[1] / "configs"
FROM_WORKDIR = FOLDER / "from_workdir.py"  # no experiment of its own
FILES = sorted(path for path in FOLDER.glob("*.py") if not path.name.startswith("_") and path != FROM_WORKDIR)


def module(path):
    spec = importlib.util.spec_from_file_location(f"experiment_{path.stem}", path)
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def variants(path):
    """Names that the file compares `variant` with."""
    return re.findall(r'variant == "(\w+)"', path.read_text(encoding="utf-8"))


CASES = [(path, variant) for path in FILES for variant in [None, *variants(path)]]


def test_there_are_experiments_with_variants():
    assert {"quickstart", "reference", "shakespeare_char", "max_aggression"} <= {path.stem for path in FILES}
    assert {"smoke", "fineweb_edu"} <= {variant for _, variant in CASES}


@pytest.mark.parametrize(("path", "variant"), CASES, ids=lambda value: getattr(value, "stem", value or "plain"))
def test_experiment_is_valid_when_its_data_is_named(path, variant):
    config = module(path).get_config(*([variant] if variant else []))
    if config.data.source == "text" and not config.data.path:
        config.data.path = "FILE"
    assert build(config).name.startswith(path.stem)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_docstring_holds_the_command_of_this_file(path):
    assert f"python -m sem_jax.train --config=configs/{path.name} --workdir=" in module(path).__doc__


@pytest.mark.parametrize("path", [path for path in FILES if variants(path)], ids=lambda path: path.stem)
def test_every_variant_is_documented_and_an_unknown_one_is_refused_by_name(path):
    experiment = module(path)
    assert all(variant in experiment.__doc__ for variant in variants(path))
    with pytest.raises(ValueError, match=r"'smke'.*smoke"):
        experiment.get_config("smke")


def test_smoke_is_the_same_model_in_a_short_run():
    experiment = module(FOLDER / "max_aggression.py")
    whole, smoke = build(experiment.get_config()), build(experiment.get_config("smoke"))
    assert smoke.model == whole.model
    assert smoke.training.max_steps < 10


def test_a_workdir_is_an_experiment_with_its_own_tokenizer(tmp_path):
    dataset = SimpleNamespace(tokenizer=ByteTokenizer(), fingerprint="text")
    config = build({"name": "earlier", "model": {"vocab_size": 261}, "training": {"max_steps": 9000}})
    prepare_workdir(tmp_path, config, dataset)
    experiment = build(module(FROM_WORKDIR).get_config(str(tmp_path)))
    assert experiment.data.tokenizer_path == str(tmp_path / "tokenizer.json")
    assert dataclasses.replace(experiment, data=config.data) == config


@pytest.mark.parametrize("workdir", ["", "nowhere"])
def test_a_workdir_that_is_none_ends_the_process_with_one_line(workdir):
    with pytest.raises(SystemExit, match=r"^error: .*(from_workdir\.py:DIR|not the workdir of a run)"):
        module(FROM_WORKDIR).get_config(workdir)
