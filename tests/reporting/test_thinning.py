"""A thinned curve keeps what the eye could see: first, last, lowest, highest and gaps of each column."""

import itertools
import math

import numpy as np
import pytest

from sem_jax.reporting.thinning import thinned

COLUMNS = 50


@pytest.fixture
def curve():
    rng = np.random.default_rng(0)
    x = np.sort(rng.uniform(0, 1e6, 10_000))
    y = rng.normal(size=len(x)).cumsum()
    y[[137, 5000]] = 1e9, -1e9
    y[8000:8010] = math.nan
    return x, y


def test_each_column_keeps_its_extremes_and_its_gap(curve):
    x, y = curve
    kept_x, kept_y = thinned(x, y, COLUMNS)
    edges = np.linspace(x[0], x[-1], COLUMNS + 1)
    edges[-1] = math.inf  # the last column holds the last point
    for low, high in itertools.pairwise(edges):
        whole, kept = y[(x >= low) & (x < high)], kept_y[(kept_x >= low) & (kept_x < high)]
        assert (np.nanmin(whole), np.nanmax(whole)) == (np.nanmin(kept), np.nanmax(kept))
        assert np.isnan(whole).any() == np.isnan(kept).any()
    assert len(kept_x) <= 3 * COLUMNS + 2


def test_what_is_kept_are_points_of_the_curve_in_their_order(curve):
    x, y = curve
    kept_x, kept_y = thinned(x, y, COLUMNS)
    assert (np.diff(kept_x) > 0).all()
    assert (kept_x[0], kept_x[-1]) == (x[0], x[-1])
    np.testing.assert_array_equal(y[np.searchsorted(x, kept_x)], kept_y)


def test_a_short_curve_stays_whole_and_one_place_is_no_width():
    x, y = np.arange(100.0), np.arange(100.0)
    assert thinned(x, y, COLUMNS)[0] is x
    same = np.zeros(1000)
    assert len(thinned(same, np.arange(1000.0), COLUMNS)[0]) == 1000
