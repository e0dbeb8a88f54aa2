"""Which figures a page shows, and what each of them draws."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from sem_jax.reporting.axes import Scale
from sem_jax.reporting.charts import Chart, Line, Mark
from sem_jax.reporting.runs import Points, Run
from sem_jax.reporting.skips import Skips
from sem_jax.training.health import H_LAMBDA_LIMIT, NORM_DRIFT_LIMIT, RESIDUAL_FACTOR

COLOURS = 7  # of style.css, c0 to c6
_LABELLED_LAYERS = 6
_TIME_UNITS = (("days", 86_400.0), ("hours", 3_600.0), ("minutes", 60.0), ("seconds", 1.0))
_NOT_YET = "Nothing has been recorded yet."
_OLD = "The version of sem_jax that trained this run did not record it."


class _Position(NamedTuple):
    """What the x axis counts."""

    kind: str  # "steps", "tokens" or "seconds"
    name: str
    unit: float  # how many of `kind` one of `name` is

    def of(self, run: Run, points: Points) -> np.ndarray:
        """Where points stand; NaN where it is not known."""
        if self.kind == "seconds":
            return points.seconds / self.unit
        return run.tokens(points.steps) if self.kind == "tokens" else points.steps


_STEPS = _Position("steps", "steps", 1)


def learning(runs: Sequence[Run], skips: Sequence[Skips]) -> list[Chart]:
    """Loss and bits/byte, each against steps, tokens and time; the classes "by-steps" and so on tell which is which."""
    charts = []
    for position in (_STEPS, _Position("tokens", "tokens", 1), _time(runs)):
        marks = _marks(skips) if position is _STEPS else ()
        for title, unit, names in (
            ("Loss", "nats/token, with all that is minimised", ("loss", "nll")),
            ("Bits/byte", "with dots on held-out text, thin on the training batches", ("bits_per_byte",)),
        ):
            lines = [line for i, run in enumerate(runs) for line in _curves(run, i, len(runs), names, position)]
            chart = Chart(title, unit, position.name, lines, marks, scale="auto", classes=[f"by-{position.kind}"])
            charts.append(chart)
    return charts


def optimizer(runs: Sequence[Run], skips: Sequence[Skips]) -> list[Chart]:
    """Learning rate, its scale and the gradient norm."""
    marks = _marks(skips)
    return [
        Chart("Learning rate", "as it is applied", "steps", _of(runs, "lr", "learning rate"), marks, include=[0]),
        Chart(
            "Scale of the learning rate",
            "of the guard, which lowers it at a bad step",
            "steps",
            _of(runs, "lr_scale", "scale"),
            marks,
            include=[0, 1],
        ),
        Chart("Gradient norm", "before clipping", "steps", _of(runs, "grad_norm", "norm"), marks, scale="auto"),
        Chart("Speed", "tokens/s", "steps", _of(runs, "tokens_per_s", "tokens/s"), include=[0]),
    ]


def propagators(runs: Sequence[Run]) -> list[Chart]:
    """How well each layer solved, kept the norm, and how fast its channels turn."""
    tolerance = RESIDUAL_FACTOR * max(run.config.model.propagator.solver_tol for run in runs)
    charts = [
        ("residual", "Residual of the solve", "largest of a token", tolerance),
        ("norm_drift", "Norm drift", "largest |‖x‖/‖ψ‖ − 1| of a token", NORM_DRIFT_LIMIT),
        # A warning compares its lower bound, which is half the upper one.
        ("h_lambda_bound", "hλ", "upper bound of hλ_max (Gershgorin)", 2 * H_LAMBDA_LIMIT),
    ]
    return [
        Chart(title, unit, "steps", _by_layer(runs, "health", name), scale="auto", limit=limit)
        for name, title, unit, limit in charts
    ]


def waves(runs: Sequence[Run]) -> list[Chart]:
    """Phase coherence and power of the wave after the layers of each kind, at each evaluation."""
    kinds = dict.fromkeys(kind.strip() for run in runs for kind in run.config.model.blocks.split(","))
    quantities: list[tuple[str, str, str, Scale]] = [
        ("coherence", "Phase coherence", "|Σψ| / Σ|ψ| of a token, the mean; 1: all channels in phase", "linear"),
        ("power", "Power |ψ|²", "mean of channels and tokens", "auto"),
    ]
    return [
        Chart(
            title,
            unit,
            "steps",
            _by_layer(runs, "validation", f"{name}_{kind}", dots=True),
            scale=scale,
        )
        for name, heading, unit, scale in quantities
        for kind in kinds
        for title in [f"{heading} after the {kind}"]
    ]


def why_empty(runs: Sequence[Run]) -> str:
    """Why a figure may have nothing to draw: a version that recorded less also told no seconds."""
    lines = [line for run in runs for line in run.split("train")]
    return _OLD if lines and not any("seconds" in line for line in lines) else _NOT_YET


def _curves(run: Run, index: int, count: int, names: Sequence[str], position: _Position) -> list[Line]:
    """Training and validation of one run; where several are drawn, a run has one colour."""
    lines = []
    for split, colour in (("train", 0), ("validation", 1)):
        points = next((p for p in (run.points(split, name) for name in names) if len(p.values)), None)
        if points is None:
            continue
        held_out = split == "validation"
        lines.append(
            _line(
                split if count == 1 else run.name,
                position.of(run, points),
                points.values,
                f"{split} c{(colour if count == 1 else index) % COLOURS}",
                dots=held_out,
                label=held_out or count == 1 or not run.split("validation"),
            )
        )
    return [line for line in lines if len(line.x)]


def _line(name: str, x: np.ndarray, y: np.ndarray, colour: str, **options: bool) -> Line:
    known = np.isfinite(x)
    return Line(name, x[known], y[known], colour, **options)


def _of(runs: Sequence[Run], name: str, title: str) -> list[Line]:
    """One curve a run, of a number in the lines of training."""
    found = [(i, run.name if len(runs) > 1 else title, run.points("train", name)) for i, run in enumerate(runs)]
    return [
        Line(run_name, points.steps, points.values, f"c{i % COLOURS}", label=len(runs) > 1)
        for i, run_name, points in found
        if len(points.values)
    ]


def _by_layer(runs: Sequence[Run], split: str, name: str, dots: bool = False) -> list[Line]:
    """One curve a layer; of several runs one curve each, of the layer that is worst at the step, or the deepest."""
    if len(runs) == 1:
        return _layers(runs[0], split, name, dots)
    lines = []
    for i, run in enumerate(runs):
        points = run.layers(split, name)
        if points.values.size:
            values = np.max(points.values, axis=1) if split == "health" else points.values[:, -1]
            lines.append(Line(run.name, points.steps, values, f"c{i % COLOURS}", dots=dots))
    return lines


def _layers(run: Run, split: str, name: str, dots: bool) -> list[Line]:
    points = run.layers(split, name)
    depth = points.values.shape[1]
    if not depth and split == "health":
        worst = run.points("train", name)  # an older version has recorded no more
        return [Line("worst layer", worst.steps, worst.values, "c0")] if len(worst.values) else []
    named = set(range(depth)) if depth <= _LABELLED_LAYERS else {0, depth - 1}
    return [
        Line(
            f"layer {layer}",
            points.steps,
            points.values[:, layer],
            "layer",
            depth=layer / max(depth - 1, 1),
            dots=dots,
            label=layer in named,
        )
        for layer in range(depth)
    ]


def _marks(skips: Sequence[Skips]) -> list[Mark]:
    return [mark for group in skips for mark in group.marks()]


def _time(runs: Sequence[Run]) -> _Position:
    """Wall-clock time in the unit in which the longest run is a number of one or two digits."""
    known = [run.points("train", "loss").seconds for run in runs]
    longest = max((float(np.nanmax(each)) for each in known if np.isfinite(each).any()), default=0.0)
    name, unit = next(((name, unit) for name, unit in _TIME_UNITS if longest >= 2 * unit), _TIME_UNITS[-1])
    return _Position("seconds", name, unit)
