"""Shared fixtures: double precision on request, quick compilation, and one reproducible hypothesis profile."""

from __future__ import annotations

import functools
import gc
from typing import Any

import jax
import pytest
from hypothesis import HealthCheck, settings
from jax._src import compiler

# The fixtures below hold for all examples of a test, which is what they are for; hypothesis cannot know that.
settings.register_profile(
    "sem_jax",
    deadline=None,
    max_examples=15,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
settings.load_profile("sem_jax")

# Tracing makes millions of small objects, and hardly one of them in a cycle.
gc.set_threshold(50_000, 20, 20)


@pytest.fixture
def x64():
    """Double precision: what is left of a difference is the mathematics, not rounding."""
    with jax.enable_x64(True):
        yield


@functools.cache
def quick_options() -> dict[str, Any]:
    """Compiler options that take a third of the time; the older way to emit loops is slower only when run."""
    options = {"xla_cpu_use_fusion_emitters": False, "xla_cpu_parallel_codegen_split_count": 1}
    try:
        jax.jit(lambda x: x + 1, compiler_options=options)(0)
    except jax.errors.JaxRuntimeError:  # another compiler does not know them
        return {}
    return options


@pytest.fixture(scope="module")
def quick_compilation():
    """Machine code without optimisation, for files whose many tiny programs take far longer to compile than to run."""
    before, default_options = jax.config.read("jax_disable_most_optimizations"), compiler.get_compile_options
    quick = quick_options()

    def get_compile_options(*args, env_options_overrides=None, **kwargs):
        return default_options(*args, env_options_overrides=quick | (env_options_overrides or {}), **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        # Options of `jax.jit` would not reach the programs of single operations.
        patch.setattr(compiler, "get_compile_options", get_compile_options)
        jax.config.update("jax_disable_most_optimizations", True)
        yield
        jax.config.update("jax_disable_most_optimizations", before)
