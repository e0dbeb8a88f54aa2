"""How does the time of a training step grow with the sequence, the channels, the vocabulary and the layers?

Command:  python benchmarks/scaling.py [--axes=S,D,V,L] [--max_S=4096 --max_D=512 --max_V=65536 --max_L=16]
          [--seconds=1] [--json=FILE] [--plot=FILE]

One size grows by factors of two (V by four), the others stay at S 256, D 128, V 1024, L 2, with one sequence a batch.
Prints medians and quartiles and the exponent p of time ∝ size^p, fitted to the upper half of the sizes. The claim: time
is linear in S, and V enters only through what touches every row of the vocabulary once a step, whatever the number of
tokens: the Gram matrix with its gradient, and the optimizer. So beside V stands what one more token costs, from the
step of a sequence four times as long; it should not depend on V.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from absl import app, flags
from contenders import training_step
from figures import save_curves
from shapes import Shape, configuration
from timing import Timing, fitted_exponent, interleaved, machine, milliseconds, table, write_json

BASE = Shape(128, 2, 1024, batch=1, length=256)
FIELDS = {"S": "length", "D": "hidden_dim", "V": "vocab_size", "L": "num_layers"}
SMALLEST = {"S": 256, "D": 64, "V": 256, "L": 1}
LONGER = 4  # times the length, for what a token more costs
FACTOR = {"S": 2, "D": 2, "V": 4, "L": 2}

_AXES = flags.DEFINE_list("axes", list(FIELDS), "Which sizes grow.")
_LARGEST = {
    axis: flags.DEFINE_integer(f"max_{axis}", largest, f"Largest {axis}.")
    for axis, largest in {"S": 4096, "D": 512, "V": 65_536, "L": 16}.items()
}
_SECONDS = flags.DEFINE_float("seconds", 1.0, "Time for each size.")
_JSON = flags.DEFINE_string("json", "", "File for the same numbers.")
_PLOT = flags.DEFINE_string("plot", "", "File for the curves; its suffix decides the format. Needs matplotlib.")


class Curve(NamedTuple):
    """Time of a step against one size."""

    sizes: list[int]
    steps: list[Timing]
    exponent: float
    a_token_more: list[float] | None  # seconds that one more token costs, along V only


def sizes_of(axis: str) -> list[int]:
    sizes = [SMALLEST[axis]]
    while sizes[-1] * FACTOR[axis] <= _LARGEST[axis].value:
        sizes.append(sizes[-1] * FACTOR[axis])
    return sizes


def step_times(shapes: list[Shape]) -> list[Timing]:
    steps = {str(shape): training_step(configuration(shape)).call for shape in shapes}
    return list(interleaved(steps, _SECONDS.value).values())


def measure(axis: str) -> Curve:
    sizes = sizes_of(axis)
    shapes = [BASE._replace(**{FIELDS[axis]: size}) for size in sizes]
    times, a_token_more = step_times(shapes), None
    if axis == "V":
        longer = step_times([shape._replace(length=LONGER * shape.length) for shape in shapes])
        tokens = (LONGER - 1) * BASE.tokens
        a_token_more = [(b.median - a.median) / tokens for a, b in zip(times, longer, strict=True)]
    exponent = fitted_exponent(sizes, [t.median for t in times]) if len(sizes) > 1 else float("nan")
    return Curve(sizes, times, exponent, a_token_more)


def report(axis: str, curve: Curve) -> str:
    header = [axis, "step, ms"]
    rows: list[list[Any]] = [[size, milliseconds(t)] for size, t in zip(curve.sizes, curve.steps, strict=True)]
    if curve.a_token_more:
        header.append("a token more, ms")
        for row, seconds in zip(rows, curve.a_token_more, strict=True):
            row.append(f"{1e3 * seconds:.4f}")
    return f"{table(header, rows)}\n\ntime ∝ {axis}^{curve.exponent:.2f}"


def main(argv: list[str]) -> None:
    del argv
    host = machine()
    print(f"{host.describe()}\nbase: {BASE}", flush=True)
    curves = {}
    for axis in _AXES.value:
        curves[axis] = measure(axis)
        print(f"\n{report(axis, curves[axis])}", flush=True)
    if _JSON.value:
        write_json(_JSON.value, {"machine": host, "base": BASE, "curves": curves})
    if _PLOT.value:
        lines = {f"{axis}^{c.exponent:.2f}": (c.sizes, [1e3 * t.median for t in c.steps]) for axis, c in curves.items()}
        save_curves(_PLOT.value, lines, "size", "ms a step")


if __name__ == "__main__":
    app.run(main)
