"""Which device holds what: the mesh of a run, and the rule that lays states and batches out over it.

The devices form a grid of `config.mesh`: "data" times "fsdp". A batch is spread over all of them. A copy of the state
lies on each group of "fsdp" devices, its large arrays in equal parts. XLA derives the communication from that alone:
it gathers a weight where a layer needs it, and sums gradients over all devices.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from sem_jax.config import Config, ConfigError, MeshConfig
from sem_jax.core.devices import AXES, partition
from sem_jax.data import Batch
from sem_jax.modules.blocks import BLOCKS


@dataclass(frozen=True)
class Layout:
    """The mesh of a run. Trees of shardings have the structure of the tree that they are for."""

    mesh: Mesh

    @property
    def replicated(self) -> NamedSharding:
        """All of an array on every device."""
        return NamedSharding(self.mesh, PartitionSpec())

    @property
    def rows(self) -> NamedSharding:
        """The rows of a batch, spread over all devices."""
        return NamedSharding(self.mesh, PartitionSpec(AXES))

    def __str__(self) -> str:
        data, fsdp = (self.mesh.shape[axis] for axis in AXES)
        return f"data {data} x fsdp {fsdp}"

    def of_state(self, tree: Any) -> Any:
        """Shardings of a state, a model, or any part of one; its leaves may be abstract."""
        return jax.tree_util.tree_map_with_path(self._of_leaf, tree)

    def _of_leaf(self, path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        names = jax.tree_util.keystr(path, simple=True, separator="/").split("/")
        layered = not BLOCKS.keys().isdisjoint(names)
        return NamedSharding(self.mesh, partition(leaf.shape, self.mesh.shape["fsdp"], layered))

    def place(self, tree: Any) -> Any:
        """A state, a model, or any part of one on the mesh; each process passes the same values."""

        def place(leaf: Any, sharding: NamedSharding) -> jax.Array:
            values = np.asarray(leaf)
            return jax.make_array_from_callback(values.shape, sharding, lambda index: values[index])

        return jax.tree.map(place, tree, self.of_state(tree))

    def abstract(self, tree: Any) -> Any:
        """The shapes and dtypes of a state with its shardings: what restoring a checkpoint asks for."""

        def abstract(leaf: Any, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

        return jax.tree.map(abstract, tree, self.of_state(tree))

    def here(self, tree: Any) -> Any:
        """A state, a model, or any part of one, whole on the first device of this process; all processes must call."""
        whole = jax.device_put(tree, self.replicated)
        return jax.tree.map(lambda leaf: leaf.addressable_data(0), whole)

    def own_rows(self, count: int) -> np.ndarray:
        """Which rows of a batch of `count` this process's devices hold, in ascending order."""
        slices = self.rows.addressable_devices_indices_map((count,)).values()
        return np.unique(np.concatenate([np.arange(count)[index] for index in slices]))

    def place_batch(self, own: Batch, count: int) -> Batch:
        """A batch of `count` rows on the mesh, of which `own` are those of this process."""

        def place(rows: np.ndarray) -> Any:
            return jax.make_array_from_process_local_data(self.rows, rows, (count, *rows.shape[1:]))

        return Batch(*map(place, own))


def make_layout(config: Config) -> Layout:
    """The layout that `config.mesh` asks for, on the devices of all processes.

    Raises:
      ConfigError: the mesh does not fit the devices, or the batches do not fit the mesh.
    """
    devices = jax.devices()
    data, fsdp = mesh_shape(config.mesh, len(devices), jax.process_count())
    for name in ("micro_batch", "global_batch"):
        size = getattr(config.training, name)
        if size % (data * fsdp):
            raise ConfigError(
                f"config.training.{name} = {size} sequences cannot be spread evenly over the {data * fsdp} devices of "
                f"config.mesh; make it a multiple of {data * fsdp}, or set config.mesh.data to use fewer devices"
            )
    mesh = jax.make_mesh((data, fsdp), AXES, (AxisType.Auto,) * 2, devices=devices[: data * fsdp])
    return Layout(mesh)


def mesh_shape(mesh: MeshConfig, num_devices: int, num_processes: int = 1) -> tuple[int, int]:
    """(data, fsdp) on so many devices.

    A process alone may leave devices idle. Several may not: one without a device could do nothing but wait.

    Raises:
      ConfigError: the mesh needs more devices, does not divide them, or leaves some to processes that would idle.
    """
    if num_devices % mesh.fsdp and not mesh.data:
        raise ConfigError(
            f"config.mesh.fsdp = {mesh.fsdp} does not divide the {num_devices} devices; set it to a divisor of "
            f"{num_devices}, or give config.mesh.data, too"
        )
    data = mesh.data or num_devices // mesh.fsdp
    used = data * mesh.fsdp
    if used > num_devices or (num_processes > 1 and used < num_devices):
        there = f"{num_processes} processes have" if num_processes > 1 else "there are"
        raise ConfigError(
            f"config.mesh.data = {data} times config.mesh.fsdp = {mesh.fsdp} asks for {used} devices, but {there} "
            f"{num_devices}; set config.mesh.data = 0 to use all"
        )
    return data, mesh.fsdp
