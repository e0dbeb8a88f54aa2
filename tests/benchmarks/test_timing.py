"""The harness: what it calls, what it reports, what it writes. Nothing is timed for its own sake."""

from __future__ import annotations

import json
import os
from pathlib import Path

import jax.numpy as jnp
import pytest
import timing


def test_median_and_quartiles():
    assert timing.summarise([5.0, 1.0, 2.0, 4.0, 3.0]) == timing.Timing(3.0, 2.0, 4.0, 5)
    assert timing.summarise([7.0]) == timing.Timing(7.0, 7.0, 7.0, 1)


def test_contenders_take_turns_after_one_call_each_that_does_not_count(monkeypatch):
    calls = []
    monkeypatch.setattr(timing, "_call", lambda run: run() or 1.0)
    contenders = {name: lambda name=name: calls.append(name) for name in "abc"}
    times = timing.interleaved(contenders, seconds=3.0, limits={"b": 2, "c": 1})
    assert {name: t.calls for name, t in times.items()} == {"a": 3, "b": 2, "c": 1}
    assert "".join(calls[:2]) == "ab"
    assert sorted(calls[2:]) == list("aaabbc")
    assert calls[2:5] == list("abc")


def test_the_budget_decides_how_often_a_contender_is_called(monkeypatch):
    monkeypatch.setattr(timing, "_call", lambda run: run())
    seconds = {"slow": 10.0, "middle": 0.5, "fast": 1e-6}
    contenders = {name: lambda value=value: value for name, value in seconds.items()}
    times = timing.interleaved(contenders, seconds=5.0, calls=(3, 50))
    assert {name: t.calls for name, t in times.items()} == {"slow": 3, "middle": 10, "fast": 50}
    assert {name: t.median for name, t in times.items()} == seconds


def test_a_compiled_function_gives_its_values():
    program = timing.compiled(lambda x: 2 * x, jnp.arange(3.0))
    assert program.seconds > 0
    assert program.call(jnp.arange(3.0)).tolist() == [0, 2, 4]
    assert timing.bound(jnp.sum, jnp.ones(4))() == 4


def test_json_keeps_names(tmp_path):
    path = tmp_path / "folder" / "figures.json"
    timing.write_json(str(path), {"step": timing.Timing(1.0, 0.5, 2.0, 3), 64: [None, True, "x"]})
    expected = {"step": {"median": 1.0, "low": 0.5, "high": 2.0, "calls": 3}, "64": [None, True, "x"]}
    assert json.loads(path.read_text()) == expected


def test_table_is_aligned_markdown():
    assert timing.table(["a", "long"], [["xyz", 1]]) == "| a   | long |\n|-----|------|\n| xyz | 1    |"


def test_exponent_of_the_upper_half():
    sizes = [1, 2, 4, 8, 16, 32]
    assert timing.fitted_exponent(sizes, [7, 7, 7, 8**1.5, 16**1.5, 32**1.5]) == pytest.approx(1.5)


def test_milliseconds_have_three_digits():
    assert timing.milliseconds(timing.Timing(0.01234, 0.012, 0.0131, 3)) == "12.3 (12.0-13.1)"


def allocate(megabytes: int):
    return lambda: jnp.ones(megabytes * 2**18).block_until_ready()


def test_peak_memory_of_another_process_is_that_of_its_call():
    assert 0.8 < timing.peak_memory(allocate, 200) / (200 * timing.MIB) < 1.3


def diary(path: str):
    """Writes down where it is made, and where it runs; the third call fails."""

    def write(event: str):
        with open(path, "a") as file:
            file.write(f"{event} {os.getpid()}\n")

    def run():
        write("run")
        if Path(path).read_text().count("run") == 3:
            raise ValueError("the third call")

    write("made")
    return run


def test_a_contender_in_its_own_process_is_made_once_and_its_errors_arrive(tmp_path):
    path = tmp_path / "diary"
    run = timing.in_own_process(diary, str(path))
    run()
    run()
    with pytest.raises(ValueError, match="the third call"):
        run()
    events, processes = zip(*(line.split() for line in path.read_text().splitlines()), strict=True)
    assert events == ("made", "run", "run", "run")
    assert len(set(processes)) == 1
    assert int(processes[0]) != os.getpid()
