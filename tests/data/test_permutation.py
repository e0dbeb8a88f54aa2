import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sem_jax.data.permutation import permute


@settings(deadline=None)
@given(size=st.integers(1, 3000), seed=st.tuples(st.integers(0, 2**70), st.integers(0, 100)))
def test_it_is_a_bijection(size, seed):
    places = permute(np.arange(size), size, seed)
    assert np.array_equal(np.sort(places), np.arange(size))


def test_a_place_does_not_depend_on_what_else_is_asked():
    whole = permute(np.arange(1000), 1000, (3, 1))
    asked = np.array([999, 5, 5, 0])
    assert np.array_equal(permute(asked, 1000, (3, 1)), whole[asked])


def test_it_is_the_same_on_every_machine():
    assert permute(np.arange(10), 10, (0, 0)).tolist() == [1, 6, 3, 5, 0, 2, 9, 4, 7, 8]


@pytest.mark.parametrize("size", [1000, 4097])
def test_it_looks_like_chance(size):
    orders = np.stack([permute(np.arange(size), size, (seed, 0)) for seed in range(100)])
    fixed = (orders == np.arange(size)).sum(axis=1)
    assert 0.6 < fixed.mean() < 1.5  # a random permutation has one fixed place on average
    neighbours = np.abs(np.diff(orders, axis=1)).mean()
    assert neighbours == pytest.approx(size / 3, rel=0.02)
    assert len({tuple(order) for order in orders}) == 100


def test_sizes_far_beyond_memory_work():
    size = 10**12 + 7
    places = permute(np.arange(1000), size, (0,))
    assert len(set(places.tolist())) == 1000
    assert places.min() >= 0
    assert size * 0.9 < places.max() < size
