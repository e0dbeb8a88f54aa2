"""Which form of the recurrence is fastest, against the length and the size of the state?

Command:  python benchmarks/scan.py [--lengths=64,256,1024,4096] [--states=128,2048] [--batch=1]
          [--methods=sequential,associative] [--seconds=1] [--json=FILE]

The complex diagonal recurrence h_t = a_t·h_{t−1} + b_t alone (`sem_jax.core.scan`), forward and with the gradient in a,
b and h_0; a state of G·N entries for each of --batch sequences. "auto" takes the form named at the end on this machine.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from absl import app, flags
from parts import both_passes, time_passes
from timing import Timing, machine, milliseconds, table, write_json

from sem_jax.core.complex_ops import complex_normal
from sem_jax.core.scan import METHODS, default_method, linear_recurrence

_LENGTHS = flags.DEFINE_list("lengths", ["64", "256", "1024", "4096"], "S.")
_STATES = flags.DEFINE_list("states", ["128", "2048"], "G·N, entries of the state of one sequence.")
_BATCH = flags.DEFINE_integer("batch", 1, "Sequences.")
_METHODS = flags.DEFINE_list("methods", list(METHODS), "Forms.")
_SECONDS = flags.DEFINE_float("seconds", 1.0, "Time for each measurement.")
_JSON = flags.DEFINE_string("json", "", "File for the same numbers.")


class Point(NamedTuple):
    """One form at one size."""

    length: int
    state: int
    method: str
    forward: Timing
    training: Timing


def measure(length: int, state: int) -> list[Point]:
    b = complex_normal(jax.random.key(0), (length, _BATCH.value, state), 1.0)
    a = 0.9 * b / jnp.maximum(jnp.abs(b), 1)
    contenders = {}
    for method in _METHODS.value:
        recurrence = lambda moving, _, method=method: linear_recurrence(*moving, method)[0]  # noqa: E731
        contenders[method] = both_passes(recurrence, (a, b, jnp.zeros_like(b[0])))
    times = time_passes(contenders, _SECONDS.value)
    return [Point(length, state, method, *passes) for method, passes in times.items()]


def main(argv: list[str]) -> None:
    del argv
    host = machine()
    print(host.describe(), flush=True)
    points = [p for s in map(int, _STATES.value) for n in map(int, _LENGTHS.value) for p in measure(n, s)]
    rows = [[p.state, p.length, p.method, milliseconds(p.forward), milliseconds(p.training)] for p in points]
    print(table(["state", "S", "form", "forward, ms", "with backward, ms"], rows))
    print(f"\nauto: {default_method()}")
    if _JSON.value:
        write_json(_JSON.value, {"machine": host, "batch": _BATCH.value, "points": points})


if __name__ == "__main__":
    app.run(main)
