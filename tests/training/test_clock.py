"""The seconds of all causes add up to the time that has passed, each second once."""

from __future__ import annotations

import time

import jax
import jax.numpy as jnp
import pytest

from sem_jax.training import clock as clock_module
from sem_jax.training.clock import CAUSES, Clock, seconds_in, values_of


class FakeTime:
    """A clock that is set by hand."""

    def __init__(self):
        self.now = 100.0

    def perf_counter(self):
        return self.now


@pytest.fixture
def fake(monkeypatch):
    fake = FakeTime()
    monkeypatch.setattr(clock_module, "time", fake)
    return fake


def spent(clock):
    return {cause: seconds for cause, seconds in clock.seconds.items() if seconds}


def test_each_cause_gets_its_own_seconds_and_the_step_what_is_left(fake):
    clock = Clock()
    fake.now += 1
    clock.turn("step")

    def batches():
        for number in range(3):
            fake.now += 0.5
            yield number

    seen = []
    for number in clock.waiting(batches(), "data"):
        fake.now += 10
        seen.append(number)
        if number == 1:
            with clock.spending("evaluation"):
                fake.now += 3
                with clock.spending("save"):
                    fake.now += 2
                fake.now += 4
    clock.turn("step")
    assert seen == [0, 1, 2]
    assert spent(clock) == {"start": 1, "data": 1.5, "step": 30, "evaluation": 7, "save": 2}
    assert sum(clock.seconds.values()) == fake.now - 100


def test_a_cause_ends_with_the_error_that_ends_it(fake):
    clock = Clock()
    clock.turn("step")

    def fail():
        fake.now += 2
        raise KeyError

    with pytest.raises(KeyError), clock.spending("save"):
        fail()
    fake.now += 1
    clock.turn("step")
    assert spent(clock) == {"save": 2, "step": 1}


def test_compilation_is_counted_once_and_not_where_it_happens(fake):
    clock = Clock()
    clock.turn("evaluation")
    fake.now += 1
    for passed, duration in ((2, 2), (3, 1), (1, 6)):  # two inner programs, and the outer one that contains them
        fake.now += passed
        clock._on_event("/jax/core/compile/jaxpr_trace_duration", duration)
    fake.now += 2
    clock._on_event("/jax/core/compile/backend_compile_duration", 1.5)
    clock._on_event("/jax/something/else", 1.0)
    fake.now += 1
    clock.turn("step")
    assert spent(clock) == {"compile": 7.5, "evaluation": 2.5}


def test_what_began_before_the_cause_counts_from_its_beginning(fake):
    clock = Clock()
    fake.now += 5
    clock.turn("step")
    fake.now += 1
    clock._on_event("/jax/core/compile/jaxpr_trace_duration", 4)
    clock.turn("step")
    assert spent(clock) == {"start": 5, "compile": 1}


def test_a_real_compilation_is_noticed_within_the_clock_and_not_after_it():
    with Clock() as clock:
        start = time.perf_counter()
        clock.turn("step")
        jax.jit(lambda x: jnp.sin(x) @ jnp.cos(x))(jnp.eye(3)).block_until_ready()
        clock.turn("save")
        passed = time.perf_counter() - start
    assert 0 < clock.seconds["compile"] <= passed
    assert clock.seconds["step"] >= 0
    before = dict(clock.seconds)
    jax.jit(lambda x: jnp.sin(x) @ jnp.tan(x))(jnp.eye(3))
    assert clock._compiled == []
    assert clock.seconds == before


def test_seconds_go_through_a_line_of_metrics_and_nothing_else_does():
    clock = Clock()
    clock.add({"step": 3.25, "lost": 2.0})
    assert seconds_in(values_of(clock.seconds)) == dict.fromkeys(CAUSES, 0.0) | {"step": 3.25, "lost": 2.0}
    hostile = {"step_s": "x", "save_s": -1.0, "data_s": float("nan"), "lost_s": 1e300, "start_s": None}
    assert seconds_in(hostile) == dict.fromkeys(CAUSES, 0.0)
