"""The experiments in configs/: each is valid and says how it is run."""

import dataclasses
import importlib.util
import pathlib
import re
from types import SimpleNamespace

import pytest

from sem_jax.config import ConfigError, build
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
    """Names that the file tells apart."""
    return re.findall(r'case "(\w+)"', path.read_text(encoding="utf-8"))


CASES = [(path, variant) for path in FILES for variant in [None, *variants(path)]]


def test_there_are_experiments_with_variants():
    assert {"quickstart", "reference", "shakespeare_char", "max_aggression"} <= {path.stem for path in FILES}
    assert {"seed", "smoke", "fineweb_edu"} <= {variant for _, variant in CASES}


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
    with pytest.raises(ConfigError, match=r"'smke'.*smoke") as error:
        experiment.get_config("smke")
    assert "\n" not in str(error.value)


def test_the_variants_of_max_aggression_train_one_model_on_what_they_promise():
    experiment = module(FOLDER / "max_aggression.py")
    names = ("", "seed", "fineweb_edu", "smoke")
    small, seed, fineweb, smoke = (build(experiment.get_config(name)) for name in names)
    assert {small.model, seed.model, fineweb.model, smoke.model} == {seed.model}
    assert {each.optimizer.learning_rate for each in (small, seed, fineweb, smoke)} == {1.2e-3}
    assert [each.optimizer.temperature for each in (small, seed, fineweb, smoke)] == [0, 1e-5, 1e-5, 1e-5]
    assert small.training.global_batch * small.data.seq_length == 1024
    assert seed.training.global_batch * seed.data.seq_length == 2**22
    assert fineweb.training == seed.training
    assert (fineweb.data.stream, seed.data.stream) == (True, False)
    assert smoke.training.max_steps < 10


def test_a_workdir_is_an_experiment_with_its_own_tokenizer(tmp_path):
    dataset = SimpleNamespace(tokenizer=ByteTokenizer(), fingerprint="text")
    config = build({"name": "earlier", "model": {"vocab_size": 261}, "training": {"max_steps": 9000}})
    prepare_workdir(tmp_path, config, dataset)
    experiment = build(module(FROM_WORKDIR).get_config(str(tmp_path)))
    assert experiment.data.tokenizer_path == str(tmp_path / "tokenizer.json")
    assert dataclasses.replace(experiment, data=config.data) == config


@pytest.mark.parametrize("workdir", ["", "nowhere"])
def test_a_workdir_that_is_none_is_refused(workdir):
    with pytest.raises(ConfigError, match=r"from_workdir\.py:DIR|not the workdir of a run"):
        module(FROM_WORKDIR).get_config(workdir)
