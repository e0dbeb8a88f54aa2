"""Chunks of a batch that keep every device busy."""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp
from jax import Array


def num_devices() -> int:
    """Devices that share a batch: those of the mesh in whose context this is traced, 1 outside of any."""
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty else mesh.size


def in_chunks(rows: Array, size: int, filling: Literal["constant", "edge"] = "constant") -> Array:
    """Rows [n, ...] as [chunks, devices·size, ...], each chunk with `size` rows of every device.

    The rows lie one device's behind the other's. A plain reshape would cut out chunks that only a few devices hold.

    Args:
      rows: n is a multiple of `num_devices()`.
      size: rows of one device in a chunk.
      filling: of the last chunk, where the rows do not fill it: "constant", zeros, or "edge", the last row again.
    """
    devices, rest = num_devices(), rows.shape[1:]
    by_device = rows.reshape(devices, -1, *rest)
    missing = -by_device.shape[1] % size
    if missing:
        by_device = jnp.pad(by_device, [(0, 0), (0, missing)] + [(0, 0)] * len(rest), mode=filling)
    chunks = jnp.swapaxes(by_device.reshape(devices, -1, size, *rest), 0, 1)
    return chunks.reshape(-1, devices * size, *rest)


def from_chunks(chunks: Array, count: int) -> Array:
    """The first `count` rows [count, ...] that `in_chunks` made chunks of."""
    devices, rest = num_devices(), chunks.shape[2:]
    by_device = jnp.swapaxes(chunks.reshape(len(chunks), devices, -1, *rest), 0, 1).reshape(devices, -1, *rest)
    return by_device[:, : count // devices].reshape(count, *rest)
