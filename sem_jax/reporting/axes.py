"""Axes: from values to shares of a length, with ticks at round numbers."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np

Scale = Literal["linear", "auto"]
_TICKS = 5
_WIDE = 30  # from this ratio of the largest to the smallest value on, "auto" is logarithmic
_TINY = 1e-300  # less counts as 0, for a step between ticks must not underflow
_LOG_STRIDES = 6  # at most so many decades are ticked one by one


@dataclass(frozen=True)
class Axis:
    """From `low` to `high`, which differ."""

    low: float
    high: float
    log: bool = False

    def place(self, values: np.ndarray | float) -> np.ndarray:
        """Shares of the axis's length, 0 at `low` and 1 at `high`; what lies beyond an end is put on it, NaN stays."""
        values = np.asarray(values, np.float64)
        if not self.log:
            return np.clip((values - self.low) / (self.high - self.low), 0, 1)
        logs = np.log(np.where(values > 0, values, np.where(np.isnan(values), np.nan, self.low)))
        return np.clip((logs - math.log(self.low)) / (math.log(self.high) - math.log(self.low)), 0, 1)

    def ticks(self) -> list[tuple[float, str]]:
        """Round values within the axis, with their labels."""
        if self.log:
            return [(value, short_number(value)) for value in _log_ticks(self.low, self.high)]
        step = _round_step(self.high - self.low)
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        largest = max(abs(self.low), abs(self.high))
        return [(k * step, _linear_label(k * step, step, largest)) for k in range(first, last + 1)]


def value_axis(values: Iterable[float], scale: Scale = "linear", include: Iterable[float] = ()) -> Axis | None:
    """The axis of values, with ends at round numbers; None where no value is finite.

    Args:
      values: any numbers.
      scale: "auto" is logarithmic where no value is negative and positive ones differ by large factors; a zero then
        lies at the lower end.
      include: further values that the axis must reach, if there is any value at all.
    """
    given = np.fromiter(values, np.float64)
    finite = given[np.isfinite(given)]
    if not len(finite):
        return None
    reached = np.concatenate([finite, np.fromiter(include, np.float64)])
    reached[np.abs(reached) < _TINY] = 0
    low, high = float(reached.min()), float(reached.max())
    positive = reached[reached > 0]
    if scale == "auto" and low >= 0 and len(positive) and high > _WIDE * positive.min():
        return _log_axis(float(positive.min()), high)
    if high - low <= 1e-9 * max(abs(low), abs(high)):  # one value, or as good as one
        margin = abs(high) / 10 or 1.0
        low, high = low - margin, high + margin
    return _linear_axis(low, high)


def position_axis(values: Iterable[float]) -> Axis | None:
    """The axis of steps, tokens or time: from 0 to the last of them."""
    given = np.fromiter(values, np.float64)
    finite = given[np.isfinite(given)]
    return Axis(0.0, max(float(finite.max()), 1e-9)) if len(finite) else None


def short_number(value: float) -> str:
    """A number in a few characters: 1.25, 12k, 3.4M, 2e−7.

    >>> [short_number(x) for x in (0, 1.25, 0.0005, 12_000, 3.4e6, 2e-7)]
    ['0', '1.25', '5e−4', '12k', '3.4M', '2e−7']
    """
    if not math.isfinite(value):
        return "not finite"
    size = abs(value)
    if value == 0 or 1e-3 <= size < 1e4:
        return f"{value:.3g}" if size < 1000 else f"{value:,.0f}"
    if 1e4 <= size < 1e15:
        exponent, unit = _unit(size)
        return f"{value / 10**exponent:.3g}{unit}"
    mantissa, exponent_text = f"{value:.2g}".split("e") if "e" in f"{value:.2g}" else f"{value:.1e}".split("e")
    return f"{float(mantissa):g}e{int(exponent_text)}".replace("-", "−")


def _unit(size: float) -> tuple[int, str]:
    return next(
        (exponent, unit) for exponent, unit in ((12, "T"), (9, "G"), (6, "M"), (3, "k")) if size >= 10**exponent
    )


def _linear_label(value: float, step: float, largest: float) -> str:
    """The label of one tick of several, all in one unit and with as many decimals."""
    if value == 0:
        return "0"
    exponent, unit = 0, ""
    if 1e4 <= largest < 1e15:
        exponent, unit = _unit(largest)
    elif largest < 0.01 or largest >= 1e15:
        exponent = math.floor(math.log10(largest))
        unit = f"e{exponent}".replace("-", "−")
    decimals = max(0, -math.floor(math.log10(step) - exponent + 1e-9))
    return f"{value / 10.0**exponent:.{decimals}f}{unit}".replace("-", "−")


def _round_step(span: float) -> float:
    """1, 2 or 5 times a power of ten that divides a span into about five."""
    power = 10.0 ** math.floor(math.log10(span / _TICKS))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power * _TICKS >= span * (1 - 1e-9))


def _linear_axis(low: float, high: float) -> Axis:
    """From tick to tick; a wider axis may want wider steps, which make it wider still."""
    step, wanted = 0.0, _round_step(high - low)
    while wanted > step * (1 + 1e-9):  # 10·1e-6 and 5·2e-6 are not the same float
        step = wanted
        low, high = math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step
        wanted = _round_step(high - low)
    return Axis(low, high)


def _log_axis(low: float, high: float) -> Axis:
    if high / low > 100:
        bottom, top = math.floor(math.log10(low) + 1e-9), math.ceil(math.log10(high) - 1e-9)
        return Axis(10.0**bottom, 10.0**top, log=True)
    return Axis(_round_factor(low, down=True), _round_factor(high * (1 + 1e-9), down=False), log=True)


def _round_factor(value: float, down: bool) -> float:
    """The 1, 2 or 5 times a power of ten next below or above a value."""
    power = 10.0 ** math.floor(math.log10(value))
    choices = [factor * power for factor in (1, 2, 5, 10)]
    below = [choice for choice in choices if choice <= value * (1 + 1e-9)]
    return below[-1] if down else next(choice for choice in choices if choice > value)


def _log_ticks(low: float, high: float) -> list[float]:
    bottom, top = math.floor(math.log10(low) + 1e-9), math.ceil(math.log10(high) - 1e-9)
    stride = max(1, math.ceil((top - bottom) / _LOG_STRIDES))
    factors = (1, 2, 5) if high / low <= 100 else (1,)
    ticks = [factor * 10.0**exponent for exponent in range(bottom, top + 1, stride) for factor in factors]
    return [tick for tick in ticks if low * (1 - 1e-9) <= tick <= high * (1 + 1e-9)]
