"""The public API: what it offers, and that every example in its docstrings runs as it stands."""

import doctest
import importlib
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import pytest

import sem_jax
from sem_jax import api
from sem_jax.config import build

pytestmark = pytest.mark.usefixtures("quick_compilation")

ERRORS = [
    "CheckpointError",
    "ConfigError",
    "DataError",
    "InteropError",
    "MetricsError",
    "ProcessError",
    "TrainingDiverged",
]


@pytest.fixture(scope="module")
def names(quick_compilation, tmp_path_factory):
    """What the examples see: the package, the tiny configuration of the module, and a workdir that they share."""
    folder = tmp_path_factory.mktemp("api")
    example = doctest.DocTestParser().get_doctest(api.__doc__, {}, "api", None, None)
    found = {}
    exec("".join(part.source for part in example.examples), found)
    tiny = found["TINY"] | {"data": found["TINY"]["data"] | {"cache_dir": str(folder / "cache")}}
    return {"sem_jax": sem_jax, "jnp": jnp, "TINY": tiny, "workdir": str(folder / "run")}


@pytest.mark.parametrize(
    "function",
    [
        api.init,
        api.train,  # before `load`, which reads its run
        api.load,
        api.export,
        sem_jax.LanguageModel.log_probs,
        sem_jax.LanguageModel.generate,
        sem_jax.LanguageModel.stream,
    ],
    ids=lambda function: function.__qualname__,
)
def test_an_example_runs_as_it_stands(names, function):
    run_examples(function.__doc__, names, function.__qualname__)


# The examples of these need the names above.
WITH_NAMES = {"sem_jax.api", "sem_jax.inference.language_model"}
PACKAGE = Path(sem_jax.__file__).parent
WITH_EXAMPLES = [
    module
    for path in sorted(PACKAGE.rglob("*.py"))
    if ">>> " in path.read_text(encoding="utf-8")
    and (module := ".".join(["sem_jax", *path.relative_to(PACKAGE).with_suffix("").parts])) not in WITH_NAMES
]


@pytest.mark.parametrize("module", WITH_EXAMPLES)
def test_the_examples_of_a_helper_run_as_they_stand(module):
    owner = importlib.import_module(module)
    found = [each for each in doctest.DocTestFinder().find(owner) if each.examples]
    assert found
    for each in found:
        run_examples(each.docstring, vars(owner), each.name)


def run_examples(text, names, title):
    example = doctest.DocTestParser().get_doctest(text, dict(names), title, None, None)
    assert example.examples
    report = []
    assert doctest.DocTestRunner().run(example, out=report.append).failed == 0, "".join(report)


def test_every_public_name_exists_and_no_command_hides_one():
    program = (
        "import sem_jax\n"
        "print([name for name in sem_jax.__all__ if not hasattr(sem_jax, name)])\n"
        "print(sem_jax.train.__module__, sem_jax.convert.__module__)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines() == ["[]", "sem_jax.api sem_jax.api"]


@pytest.mark.parametrize("name", ERRORS)
def test_every_error_has_the_common_base(name):
    assert issubclass(getattr(sem_jax, name), sem_jax.SemJaxError)


def test_errors_keep_the_builtin_that_they_specialise():
    with pytest.raises(ValueError, match=r"config\.modle does not exist"):
        sem_jax.init({"modle": {}})
    with pytest.raises(sem_jax.SemJaxError, match="not the workdir of a run"):
        sem_jax.load("nowhere")


def test_a_configuration_may_be_a_mapping_a_config_dict_or_the_dataclass(names):
    models = [sem_jax.init(form) for form in (names["TINY"], sem_jax.default(), build(names["TINY"]))[::2]]
    assert models[0].config == models[1].config
