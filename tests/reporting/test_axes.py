"""Axes reach all of their values, and their ticks are round, within them, and told apart by their labels."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sem_jax.reporting.axes import Axis, position_axis, short_number, value_axis

finite = st.floats(-1e200, 1e200).map(lambda x: x if abs(x) > 1e-300 else 0.0)


@given(st.lists(finite, min_size=1, max_size=20), st.sampled_from(["linear", "auto"]))
def test_every_value_has_its_place_and_comes_back_from_it(values, scale):
    axis = value_axis(values, scale)
    shares = axis.place(np.array(values))
    if axis.log:
        back = axis.low * (axis.high / axis.low) ** shares
        expected = np.where(np.array(values) > 0, values, axis.low)
        # exp and log of numbers whose logarithms go up to 460: as many roundings of the exponent.
        np.testing.assert_allclose(back, expected, rtol=1e-12)
    else:
        back = axis.low + (axis.high - axis.low) * shares
        np.testing.assert_allclose(back, values, rtol=0, atol=1e-15 * max(abs(axis.low), abs(axis.high)) * 8)


@given(st.lists(finite, min_size=1, max_size=20), st.sampled_from(["linear", "auto"]))
def test_ticks_lie_on_the_axis_and_their_labels_differ(values, scale):
    axis = value_axis(values, scale)
    ticks = axis.ticks()
    assert 2 <= len(ticks) <= 12
    width = axis.high - axis.low
    assert all(axis.low - 1e-9 * width <= value <= axis.high + 1e-9 * width for value, _ in ticks)
    assert len({label for _, label in ticks}) == len(ticks)
    if not axis.log:
        assert [ticks[0][0], ticks[-1][0]] == pytest.approx([axis.low, axis.high], abs=1e-9 * width)


@pytest.mark.parametrize(
    ("values", "scale", "labels"),
    [
        ([1.3, 7.2], "auto", ["0", "2", "4", "6", "8"]),
        ([0.12, 0.31], "linear", ["0.10", "0.15", "0.20", "0.25", "0.30", "0.35"]),
        ([0, 5e-3], "linear", ["0", "1e−3", "2e−3", "3e−3", "4e−3", "5e−3"]),
        ([0, 23_000], "linear", ["0", "5k", "10k", "15k", "20k", "25k"]),
        ([3e-7, 2e-3], "auto", ["1e−7", "1e−6", "1e−5", "1e−4", "0.001", "0.01"]),
        ([1, 40], "auto", ["1", "2", "5", "10", "20", "50"]),
        ([-1, 40], "auto", ["-10", "0", "10", "20", "30", "40"]),
        ([0, 1e-7, 1e-3], "auto", ["1e−7", "1e−6", "1e−5", "1e−4", "0.001"]),
    ],
)
def test_labels_are_those_that_a_person_would_write(values, scale, labels):
    assert [label.replace("−", "-") for _, label in value_axis(values, scale).ticks()] == [
        label.replace("−", "-") for label in labels
    ]


def test_values_close_together_have_an_axis_at_once():
    rng = np.random.default_rng(0)
    lows, widths = rng.uniform(0.1, 10, 5000), 10 ** rng.uniform(-8, 0, 5000)
    # Of the first pair the same step once came out as 5·2e-6 and once as 10·1e-6, in turns, for ever.
    for low, high in [(0.23695510625839233, 0.23699654638767242), *zip(lows, lows + widths, strict=True)]:
        axis = value_axis([low, high], "linear")
        assert axis.low <= low < high <= axis.high
        assert axis.high - axis.low < 3 * (high - low)


def test_one_value_lies_in_the_middle_and_none_has_no_axis():
    assert float(value_axis([2.5, 2.5]).place(2.5)) == pytest.approx(0.5, abs=0.2)
    assert value_axis([math.nan, math.inf]) is None
    assert position_axis([]) is None
    assert position_axis([0.0]).high > 0


def test_what_must_be_reached_is_reached_and_a_gap_has_no_place():
    axis = value_axis([3e-7, 6e-7], "auto", include=[1e-4])
    assert axis.log
    assert axis.high >= 1e-4
    assert math.isnan(axis.place(math.nan))
    assert float(axis.place(0.0)) == 0
    assert Axis(0, 10).place(np.array([-5, 20])).tolist() == [0, 1]


def test_short_numbers():
    numbers = [1799, 239_920, 1.3e6, 0.25, 1e-6, -3e-5, math.nan]
    assert [short_number(x) for x in numbers] == ["1,799", "240k", "1.3M", "0.25", "1e−6", "−3e−5", "not finite"]
