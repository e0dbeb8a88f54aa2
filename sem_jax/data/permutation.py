"""A shuffled order of n things that is computed, not stored: any place of it costs the same few operations.

A Feistel network is a bijection of the b-bit numbers whatever its round function is. Restricting it to [0, n) keeps it
one: follow the network until it comes back below n ("cycle walking", Black and Rogaway, 2002). With
2^(b-1) < n <= 2^b that takes fewer than two steps on average.
"""

from __future__ import annotations

import numpy as np

_ROUNDS = 6  # even, so that halves of unequal width end where they began


def permute(index: np.ndarray, size: int, seed: tuple[int, ...]) -> np.ndarray:
    """Places of `index` in the permutation of [0, size) that `seed` selects.

    Args:
      index: `[n]` integers in [0, size).
      size: number of things.
      seed: non-negative integers; each tuple selects another permutation.

    Returns:
      `[n]` int64 in [0, size); distinct for distinct indices.
    """
    bits = (size - 1).bit_length()
    keys = np.random.SeedSequence(seed).generate_state(_ROUNDS, np.uint64)
    place = _feistel(index.astype(np.uint64), bits, keys)
    while (outside := place >= size).any():
        place[outside] = _feistel(place[outside], bits, keys)
    return place.astype(np.int64)


def _feistel(value: np.ndarray, bits: int, keys: np.ndarray) -> np.ndarray:
    left_bits, right_bits = np.uint64(bits // 2), np.uint64(bits - bits // 2)
    one = np.uint64(1)
    left, right = value >> right_bits, value & ((one << right_bits) - one)
    for key in keys:
        left, right = right, left ^ (_scramble(right + key) & ((one << left_bits) - one))
        left_bits, right_bits = right_bits, left_bits
    return (left << right_bits) | right


def _scramble(value: np.ndarray) -> np.ndarray:
    """Fibonacci hashing; folds the high half of the product, which depends on every bit of `value`, onto the low."""
    product = value * np.uint64(0x9E3779B97F4A7C15)  # wraps around on purpose
    return product ^ (product >> np.uint64(32))
