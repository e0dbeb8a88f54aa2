"""Shared fixtures: double precision on request, quick compilation, and one reproducible hypothesis profile."""

from __future__ import annotations

import jax
import pytest
from hypothesis import HealthCheck, settings

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


@pytest.fixture
def x64():
    """Double precision: what is left of a difference is the mathematics, not rounding."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="module")
def quick_compilation():
    """Machine code without optimisation, for files whose many tiny programs take far longer to compile than to run."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)
