"""The order of the layers, read from the import statements."""

import ast
import functools
import pathlib
import sys

import pytest

import sem_jax

PACKAGE = pathlib.Path(sem_jax.__file__).parent
COMMANDS = {
    "train",
    "evaluate",
    "generate",
    "convert",
    "export",
    "play",
    "diagnose",
    "report",
    "cli",
    "api",
    "tokenizer",
    "__main__",
}


def name_of(path):
    """Dotted name of a module below the package: "core.born", "config", and "" for the package itself."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def imported(tree, package):
    """Every absolute dotted name that a syntax tree imports, wherever the statement stands."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parents, *([base] if base else [])])
            for alias in node.names:
                below = f"{base}.{alias.name}".removeprefix("sem_jax").removeprefix(".")
                yield f"sem_jax.{below}" if base.startswith("sem_jax") and below in MODULES else base


@functools.cache
def imports_of(name):
    path = MODULES[name]
    owner = name if path.name == "__init__.py" else name.rpartition(".")[0]
    package = f"sem_jax.{owner}".rstrip(".")
    return frozenset(imported(ast.parse(path.read_text(encoding="utf-8")), package))


def ours(name):
    """Modules of this package that a module imports, as in `MODULES`."""
    return {i.removeprefix("sem_jax").removeprefix(".") for i in imports_of(name) if i.split(".")[0] == "sem_jax"}


def theirs(name):
    """Top-level names outside this package and the standard library that a module imports."""
    tops = {i.split(".")[0] for i in imports_of(name)}
    return tops - {"sem_jax", "__future__"} - set(sys.stdlib_module_names)


def top(name):
    return name.split(".")[0]


def layer(*tops):
    return [name for name in MODULES if top(name) in tops]


def violations(names, allowed):
    allowed = allowed | {"errors"}
    return {name: bad for name in names if (bad := {i for i in ours(name) if top(i) not in allowed})}


def test_the_reader_sees_every_form_of_import():
    source = (
        "import jax.numpy as jnp\n"
        "def f():\n"
        "    from sem_jax.core import born\n"
        "    from sem_jax.core.born import log_probs\n"
        "from . import scan\n"
        "from ..config import Config\n"
    )
    assert set(imported(ast.parse(source), "sem_jax.core")) == {
        "jax.numpy",
        "sem_jax.core.born",
        "sem_jax.core.scan",
        "sem_jax.config",
    }
    assert {"core.born", "modules.model", "training.loop", "data.dataset"} <= MODULES.keys()
    assert "training.loop" in ours("train")


@pytest.mark.parametrize(
    ("names", "allowed"),
    [
        (("config",), {"config"}),
        (("core",), {"core"}),
        (("modules",), {"core", "modules", "config"}),
        (("optim",), {"core", "modules", "config", "optim"}),
        (("data",), {"data", "config"}),
        (("interop",), {"core", "modules", "config", "data", "interop"}),
        (("reporting",), {"modules", "config", "data", "training", "reporting"}),
        (("sharing",), {"modules", "optim", "config", "data", "inference", "training", "sharing"}),
        (("inference",), {"core", "modules", "config", "data", "inference"}),
        (("playground",), {"modules", "config", "data", "inference", "playground"}),
    ],
    ids=lambda value: "+".join(value) if isinstance(value, tuple) else "",
)
def test_a_layer_imports_only_what_lies_below_it(names, allowed):
    assert layer(*names)
    assert violations(layer(*names), allowed) == {}


def test_training_knows_nothing_of_the_commands():
    assert violations(layer("training"), {top(name) for name in MODULES} - COMMANDS - {""}) == {}


def test_core_needs_nothing_but_jax_and_numpy():
    assert {name: theirs(name) for name in layer("core") if theirs(name) - {"jax", "numpy"}} == {}


def test_data_needs_no_accelerator_library():
    assert {name: theirs(name) for name in layer("data") if theirs(name) & {"jax", "flax", "optax", "orbax"}} == {}


def test_imports_run_in_no_circle():
    waiting = {name: ours(name) - {name} for name in MODULES}
    # A module that imports a package runs the package's own file; it does not wait for the folders above itself.
    while ready := [name for name, needs in waiting.items() if not needs & waiting.keys()]:
        for name in ready:
            del waiting[name]
    assert waiting == {}
