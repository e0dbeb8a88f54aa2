"""A diagnosis as text for the terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence

from sem_jax.diagnosis.record import Component, Diagnosis

_COMPONENTS = (
    "component", "finite", "rms in", "rms", "max", "kurt", "tail", "ΔH bits", "coher", "|g| rms", "g growth", "|g θ|",
    "noise/upd",
)  # fmt: skip
_MIXERS = ("mixer", "gate mean", "saturated", "max |a|", "max |h|", "stream gain", "g growth")
_PROPAGATORS = ("propagator", "hλ", "κ", "residual", "iterations", "CG needs", "1-|U|", "g growth")
_LEGEND = (
    "finite: yes, or the first bad [sequence, position, channel]. rms, max |z|, excess kurtosis, tail index and phase\n"
    "coherence of the output; those of the input stand in the row above, of a residual in that of the layer before.\n"
    "ΔH: entropy over channels, output less input. |g| rms: of the gradient at the output; g growth: at the input\n"
    "over that at the output; |g θ|: norm of the parameters' gradient; noise/upd: Langevin noise over update, rms."
)


def format_diagnosis(diagnosis: Diagnosis) -> str:
    """The components, the layers and the suspects."""
    lines = [
        f"{diagnosis.name}, step {diagnosis.step}: loss {diagnosis.loss:.4f} on {diagnosis.tokens} training tokens",
        "",
        *_table(_COMPONENTS, [_component(c) for c in diagnosis.components]),
        "",
        _LEGEND,
        "",
    ]
    mixers = [
        (str(i), *map(_number, (m.gate_mean, m.gate_saturated, m.decay, m.state, m.gain, m.gradient_growth)))
        for i, m in enumerate(diagnosis.mixers)
    ]
    propagators = [
        (
            str(i),
            *map(_number, (p.h_lambda, p.condition, p.residual)),
            str(p.iterations),
            f"<= {p.iterations_bound}",
            *map(_number, (p.norm_drift, p.gradient_growth)),
        )
        for i, p in enumerate(diagnosis.propagators)
    ]
    for header, rows in ((_MIXERS, mixers), (_PROPAGATORS, propagators)):
        if rows:  # a model may have layers of other kinds
            lines += [*_table(header, rows), ""]
    if diagnosis.transport is not None:
        found = diagnosis.transport
        lines += [
            f"transport plan: a row {found['row_entropy']:.3g} bits, all rows {found['column_entropy']:.3g} bits; SDR: "
            f"{found['kept']:.1f} columns of a row are not zero",
            "",
        ]
    return "\n".join([*lines, *_suspects(diagnosis)])


def _component(c: Component) -> tuple[str, ...]:
    out = c.output
    return (
        c.name,
        "yes" if c.first_bad is None else str(c.first_bad),
        *map(_number, (c.input["rms"], out["rms"], out["largest"], out["kurtosis"], out["tail"])),
        _number(c.entropy_transfer),
        *map(_number, (out["coherence"], c.gradient_rms, c.gradient_growth)),
        *map(_number, (c.parameter_gradient_norm, c.noise_to_update)),
    )


def _suspects(diagnosis: Diagnosis) -> list[str]:
    if not diagnosis.suspects:
        return ["no suspects"]
    ranked = enumerate(diagnosis.suspects, start=1)
    return ["suspects, the worst first"] + [f"{i:3d}. [config.{s.field}] {s.message}" for i, s in ranked]


def _number(x: float | None) -> str:
    return "-" if x is None or math.isnan(x) else f"{x:.3g}"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns as wide as their widest entry: the first to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in (header, *rows)
    ]
