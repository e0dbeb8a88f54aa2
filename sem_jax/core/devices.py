"""How a program spreads its arrays over the devices that share it: chunks of a batch, and weights.

A program knows of the devices by the mesh in whose context it is traced, with axes `AXES`. A batch is spread over both,
an array of the state along "fsdp" by the rule of `partition`. Without a mesh everything here changes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import PartitionSpec

AXES = ("data", "fsdp")
# Entries of one layer's array below which every device holds it whole. Gathering 2^16 floats takes microseconds on any
# interconnect, about as long as it takes to start a collective: less would cost time and save next to nothing.
SMALL = 2**16


def num_devices() -> int:
    """Devices that share a batch, 1 without a mesh; within `on_each_copy` those of one copy, in `on_each_device` 1."""
    mesh = jax.sharding.get_abstract_mesh()
    return math.prod(size for axis, size in mesh.shape.items() if axis not in mesh.manual_axes)


def on_each_copy(function: Callable[..., Any]) -> Callable[..., Any]:
    """function(weights, rows), computed for each copy of the state from its own rows alone; its results are summed.

    Left to itself XLA sums the gradient of a weight over all devices wherever it appears: in a loop once a turn. Here
    copies exchange nothing before the end.

    Args:
      function: of a pytree of weights and a pytree of arrays whose leading axis is spread over all devices; returns
        (what is summed over the copies, what the largest is taken of).
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.shape["data"] == 1:
        return function

    def own(weights: Any, rows: Any) -> Any:
        summed, largest = function(weights, rows)
        return jax.lax.psum(summed, "data"), jax.lax.pmax(largest, "data")

    specs = PartitionSpec(), PartitionSpec("data")
    return jax.shard_map(own, axis_names={"data"}, in_specs=specs, out_specs=PartitionSpec(), check_vma=False)


def on_each_device(function: Callable[..., Any]) -> Callable[..., Any]:
    """function(weights, rows), by each device for its own rows; the gradient of a weight is summed once, at the end.

    Args:
      function: of a pytree of weights and a pytree of arrays whose leading axis is spread over all devices; returns
        such a pytree.
    """
    mesh = jax.sharding.get_abstract_mesh()
    axes = tuple(axis for axis in mesh.axis_names if axis not in mesh.manual_axes)
    if num_devices() == 1:
        return function
    specs = PartitionSpec(), PartitionSpec(axes)
    return jax.shard_map(function, axis_names=set(axes), in_specs=specs, out_specs=PartitionSpec(axes), check_vma=False)


def partition(shape: tuple[int, ...], fsdp: int, layered: bool) -> PartitionSpec:
    """How an array of the state is spread along "fsdp".

    Along its largest axis that `fsdp` divides; not at all where one layer of it is a vector or smaller than `SMALL`.
    The layer axis comes last: spread along it, a layer would lie on a few devices and be sent to the others whole.

    Args:
      shape: of the array.
      fsdp: devices that share it.
      layered: whether its first axis counts the layers of the model.
    """
    own = range(int(layered), len(shape))
    if fsdp == 1 or len(own) < 2 or math.prod(shape[axis] for axis in own) < SMALL:
        return PartitionSpec()
    candidates = [*sorted(own, key=lambda axis: -shape[axis]), *range(int(layered))]
    chosen = next((axis for axis in candidates if shape[axis] % fsdp == 0), None)
    if chosen is None:
        return PartitionSpec()
    return PartitionSpec(*("fsdp" if axis == chosen else None for axis in range(len(shape))))


def gathered(weights: Any) -> Any:
    """The weights of one layer, whole on every device; their gradients are spread as the weights were.

    Left to itself XLA may gather the activations instead, which are larger.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.shape["fsdp"] == 1:
        return weights
    return jax.tree.map(lambda x: _gathered(x) if jnp.issubdtype(x.dtype, jnp.inexact) else x, weights)


@jax.custom_vjp
def _gathered(weight: Array) -> Array:
    return jax.lax.with_sharding_constraint(weight, PartitionSpec())


def _forward(weight: Array) -> tuple[Array, None]:
    return _gathered(weight), None


def _backward(_: None, bar: Array) -> tuple[Array]:
    fsdp = jax.sharding.get_abstract_mesh().shape["fsdp"]
    return (jax.lax.with_sharding_constraint(bar, partition(bar.shape, fsdp, layered=False)),)


_gathered.defvjp(_forward, _backward)


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
    """The first `count` rows [count, ...] that `in_chunks` made chunks of on one device."""
    return chunks.reshape(-1, *chunks.shape[2:])[:count]
