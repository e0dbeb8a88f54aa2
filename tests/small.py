"""A configuration that compiles in seconds, text to train it on, and the comparisons that several tests make."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params

from sem_jax.config import Config, OptimizerConfig, build, override
from sem_jax.inference import language_model
from sem_jax.training import evaluation, loop, state, step

SENTENCES = (
    "the wave turns and the phase turns with it. ",
    "a unitary step keeps the norm of the wave. ",
    "the graph couples the channels of the wave. ",
)
TEXT = "".join(SENTENCES[i % 3] for i in range(120))

_FIELDS: dict[str, Any] = {
    "model": {
        "hidden_dim": 16,
        "num_layers": 1,
        "max_seq_length": 256,
        "encoder": {
            "transport": "row_softmax",
            "position_phase": True,
            "sdr_candidates": 8,
            "sdr_sparsity": 4,
            "cost_dim": 8,
        },
        "mixer": {"block_size": 4, "num_groups": 2, "num_heads": 2, "state_dim": 4},
        "propagator": {"laplacian_sparsity": 3},
    },
    "optimizer": {"learning_rate": 1e-2, "warmup_steps": 2, "decay_steps": 2},
    "data": {
        "source": "text",
        "path": "unused",
        "split": "tail",
        "validation_fraction": 0.1,
        "tokenizer": "char",
        "packing": "windows",
        "seq_length": 16,
    },
    "training": {
        "max_steps": 12,
        "global_batch": 4,
        "micro_batch": 4,
        "log_every": 2,
        "eval_every": 6,
        "eval_batches": 2,
        "health_every": 4,
        "checkpoint_every": 4,
    },
    "sampling": {"prompt": "the ", "max_tokens": 8},
    "mesh": {},
}


def fields(**changes: Any) -> dict[str, Any]:
    """The small configuration as a nested dict; `model__hidden_dim=8` replaces one field."""
    return override(_FIELDS, {name.replace("__", "."): value for name, value in changes.items()})


def config(**changes: Any) -> Config:
    """The small configuration; `model__hidden_dim=8` replaces one field."""
    return build(fields(**changes))


def text_config(folder: Path, **changes: Any) -> Config:
    """The small configuration on `TEXT`, which is written into the folder, as is the cache."""
    path = folder / "text.txt"
    if not path.exists():
        path.write_text(TEXT, encoding="utf-8")
    return config(**{"data__path": str(path), "data__cache_dir": str(folder / "cache")} | changes)


def differing_leaves(first: Any, second: Any) -> list[str]:
    """Names of the leaves that are not equal to the bit."""
    ours, theirs = (jax.tree_util.tree_leaves_with_path(jax.device_get(tree)) for tree in (first, second))
    assert [path for path, _ in ours] == [path for path, _ in theirs]
    return [
        jax.tree_util.keystr(path, simple=True, separator="/")
        for (path, x), (_, y) in zip(ours, theirs, strict=True)
        if np.asarray(x).dtype != np.asarray(y).dtype or np.asarray(x).tobytes() != np.asarray(y).tobytes()
    ]


def copied(tree: Any) -> Any:
    """The same values in arrays of their own, which a step may donate."""
    return jax.tree.map(jnp.copy, tree)


@contextlib.contextmanager
def shared_programs() -> Iterator[None]:
    """Runs of one configuration share their compiled functions, which otherwise take longer than the runs."""
    with pytest.MonkeyPatch.context() as patch:
        fresh, step_of = functools.cache(state.init_state), functools.cache(step.make_train_step)

        def init_state(config: Config) -> state.TrainState:
            return copied(fresh(config))

        def make_train_step(config: Config) -> Any:
            # No program reads these fields.
            training = dataclasses.replace(config.training, eval_every=1, keep_checkpoints=1)
            return step_of(dataclasses.replace(config, training=training))

        patch.setattr(loop, "init_state", init_state)
        patch.setattr(loop, "make_train_step", make_train_step)
        patch.setattr(evaluation, "make_eval_step", functools.cache(step.make_eval_step))
        patch.setattr(language_model.LanguageModel, "generate", lambda self, prompt: prompt)
        yield


def array_sizes(jaxpr: Any) -> Iterator[int]:
    """Number of entries of every array that a program computes, inner programs included."""
    for equation in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        yield from (variable.aval.size for variable in equation.outvars)
        for inner in jaxprs_in_params(equation.params):
            yield from array_sizes(inner)


def primitives(jaxpr: Any) -> Iterator[str]:
    """Name of every operation of a program, inner programs included."""
    for equation in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        yield equation.primitive.name
        for inner in jaxprs_in_params(equation.params):
            yield from primitives(inner)


def example_in(page: Path) -> Any:
    """The one Python example of a page, ready to be executed."""
    (example,) = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    return compile(example, str(page), "exec")


def complex_normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Standard normal in both parts, in double precision."""
    return rng.normal(size=shape) + 1j * rng.normal(size=shape)


@functools.cache
def quick_options() -> dict[str, Any]:
    """Compiler options that take a third of the time; the older way to emit loops is slower only when run."""
    options = {"xla_cpu_use_fusion_emitters": False, "xla_cpu_parallel_codegen_split_count": 1}
    try:
        jax.jit(lambda x: x + 1, compiler_options=options)(0)
    except jax.errors.JaxRuntimeError:  # another compiler does not know them
        return {}
    return options


def quick_environment(*flags: str) -> dict[str, str]:
    """Variables of a process that compiles as under `quick_compilation`; flags are more of XLA's."""
    quick = (f"--{name}={str(value).lower()}" for name, value in quick_options().items())
    return {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1", "XLA_FLAGS": " ".join([*flags, *quick])}


def output_on_two_devices(program: str) -> str:
    """What a program prints in a process that sees two CPU devices; its error is the assertion's message."""
    environment = os.environ | quick_environment("--xla_force_host_platform_device_count=2") | {"JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.strip()


def adamw_step(p: Any, g: Any, m: Any, v: Any, t: int, rate: float, decay: float, config: OptimizerConfig) -> Any:
    """(parameter, moments) after the t-th step, from 1, of one leaf in float64 (docs/mathematics.md, section 2)."""
    g = np.conj(g)
    m = config.b1 * m + (1 - config.b1) * g
    v = config.b2 * v + (1 - config.b2) * np.abs(g) ** 2
    p = p * (1 - rate * decay)
    return p - rate / (1 - config.b1**t) * m / (np.sqrt(v / (1 - config.b2**t)) + config.eps), m, v
