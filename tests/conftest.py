"""Shared fixtures: double precision on request, quick compilation, and one reproducible hypothesis profile."""

from __future__ import annotations

import gc

import jax
import pytest
from hypothesis import HealthCheck, settings
from jax._src import compiler
from small import quick_options

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
