"""A trace covers the steps that were asked for, and costs no run."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest
from small import config

from sem_jax.config import ConfigError
from sem_jax.training.profile import Profile


class Profiler:
    """What JAX's profiler is told, at which step."""

    def __init__(self, monkeypatch, failing=()):
        self.step, self.told, self.failing = 0, [], failing
        monkeypatch.setattr(jax.profiler, "start_trace", lambda folder, **_: self._do("start"))
        monkeypatch.setattr(jax.profiler, "stop_trace", lambda: self._do("stop"))

    def _do(self, what):
        if what in self.failing:
            raise OSError(28, "No space left on device")
        self.told.append((what, self.step))


def run(profiler, folder, steps, start, end, said):
    state = jnp.zeros(())
    with Profile(steps, folder, start, said.append) as profile:
        for profiler.step in range(start + 1, end + 1):
            profile.before(profiler.step, state)
            profile.after(profiler.step, state)


@pytest.mark.parametrize(
    ("steps", "start", "end", "told"),
    [
        ("10:15", 0, 20, [("start", 10), ("stop", 15)]),
        ("10:10", 0, 20, [("start", 10), ("stop", 10)]),
        ("10:15", 12, 20, [("start", 13), ("stop", 15)]),  # a resumed run takes what is left
        ("10:15", 15, 20, []),
        ("10:15", 0, 12, [("start", 10), ("stop", 12)]),  # a run that ends earlier
        ("", 0, 20, []),
    ],
)
def test_the_steps_that_were_asked_for_are_traced(monkeypatch, tmp_path, steps, start, end, told):
    profiler, said = Profiler(monkeypatch), []
    run(profiler, tmp_path, steps, start, end, said)
    assert profiler.told == told
    assert said == [f"steps from {step} on are traced in {tmp_path}/profile" for what, step in told if what == "start"]


@pytest.mark.parametrize("failing", ["start", "stop"])
def test_a_trace_that_cannot_be_written_is_one_warning(monkeypatch, tmp_path, failing):
    profiler, said = Profiler(monkeypatch, [failing]), []
    run(profiler, tmp_path, "10:15", 0, 20, said)
    (warning,) = said
    assert "no trace is written, and the run goes on: [Errno 28] No space left" in warning


@pytest.mark.parametrize("steps", ["10", "10:", "0:3", "15:10", "1:2:3", "a:b", "-1:3", "1:1001", "9" * 50 + ":1"])
def test_what_is_no_range_of_steps_is_refused(steps):
    with pytest.raises(ConfigError, match=r"config.training.profile = .* must be FIRST:LAST, such as 10:15"):
        config(training__profile=steps)
