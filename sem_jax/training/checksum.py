"""The checksum of an array that several processes hold in parts: a sum, the same however the array is cut.

With w_k the k-th word of at most 32 bits of the whole array, it is

    Σ_k (2k + 1)·w_k  mod 2^64.

As the weights are odd, a flipped bit changes it, whichever it is; as they differ, so do two words that change places.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from sem_jax.training.processes import gather, is_first


def checksums(arrays: dict[str, Any]) -> dict[str, int]:
    """The checksum of each leaf, from the parts that all processes hold."""
    parts = gather({name: sum(_own_parts(array)) % 2**64 for name, array in arrays.items()})
    return {name: sum(part[name] for part in parts) % 2**64 for name in arrays}


def _own_parts(array: Any) -> Iterator[int]:
    """The checksum's terms from this process; of what several devices or processes hold, one of them sums it."""
    if isinstance(array, jax.Array):
        for shard in array.addressable_shards:
            if shard.replica_id == 0:
                starts = [index.start or 0 for index in shard.index]
                yield weighted_sum(np.asarray(shard.data), starts, array.shape)
    elif is_first():
        yield weighted_sum(np.asarray(array), [0] * array.ndim, array.shape)


def weighted_sum(block: np.ndarray, starts: Sequence[int], shape: tuple[int, ...]) -> int:
    """Σ_k (2k + 1)·w_k mod 2^64 over the words of a block of an array.

    The index k is linear in the coordinates, so that the sum splits into one along each axis, of words summed over the
    other axes.

    Args:
      block: part of the array.
      starts: coordinates of its first entry.
      shape: of the whole array.
    """
    width = min(block.itemsize, 4)
    words = np.asarray(block, order="C").reshape(*block.shape, 1).view(f"u{width}")
    whole, starts = (*shape, block.itemsize // width), (*starts, 0)
    if words.shape == whole:
        words, whole, starts = words.reshape(-1), (words.size,), (0,)
    total, stride = int(np.sum(words, dtype=np.uint64)), 1
    for axis in reversed(range(words.ndim)):
        others = tuple(other for other in range(words.ndim) if other != axis)
        places = np.arange(starts[axis], starts[axis] + words.shape[axis], dtype=np.uint64)
        total += 2 * stride * int(np.dot(np.sum(words, axis=others, dtype=np.uint64), places))
        stride *= whole[axis]
    return total % 2**64
