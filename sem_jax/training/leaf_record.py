"""What a checkpoint records of its leaves, and how what is read differs from it."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sem_jax.errors import SemJaxError
from sem_jax.training.checksum import checksums

PyTree = Any
Entry = dict[str, Any]  # {"dtype": "complex64", "shape": [4, 128], "sum": 2774}
Record = dict[str, Entry]

_MAX_LISTED = 10


class CheckpointError(SemJaxError, RuntimeError):
    """A checkpoint that is missing, damaged, of another configuration or not writable; the message gives the cure."""


def named_leaves(tree: PyTree) -> dict[str, Any]:
    """The leaves of a state by name, such as "params/mixer/kernel".

    Raises:
      CheckpointError: two have the same name, or one is no array of numbers or booleans.
    """
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    named = {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}
    if len(named) < len(leaves):
        raise CheckpointError("two leaves of the state have the same name; keep '/' out of the keys of its dicts")
    for name, leaf in named.items():
        dtype = getattr(leaf, "dtype", None)
        if dtype is None or not any(jnp.issubdtype(dtype, kind) for kind in (jnp.number, jnp.bool_)):
            raise CheckpointError(f"leaf {name} is {leaf!r:.80}; give an array of numbers or booleans, or leave it out")
    return named


def form_of(leaf: Any) -> Entry:
    """What is recorded of an array besides its checksum."""
    return {"dtype": str(leaf.dtype), "shape": list(leaf.shape)}


def changed_leaves(record: Record, arrays: dict[str, Any]) -> list[str]:
    """Names of the leaves that are not what was saved."""
    sums = checksums(arrays)
    return [
        name
        for name, entry in record.items()
        if (entry["crc32"] != _crc(arrays[name]) if "crc32" in entry else entry["sum"] != sums[name])
    ]


def _crc(array: Any) -> int:
    return zlib.crc32(np.asarray(array, order="C").reshape(-1).view(np.uint8).data)


def record_crc(record: Record) -> int:
    """The checksum of a record itself."""
    return zlib.crc32(json.dumps(record, sort_keys=True).encode())


def require_same_forms(record: Record, targets: dict[str, Any], path: Path) -> None:
    """Raises CheckpointError where the leaves saved at `path` have other names, dtypes or shapes than the targets."""
    saved = {name: f"{entry['dtype']}{entry['shape']}" for name, entry in record.items()}
    wanted = {name: "{dtype}{shape}".format(**form_of(leaf)) for name, leaf in targets.items()}
    lines = [
        f"  {name}: {saved.get(name, 'nothing')} saved, {wanted.get(name, 'nothing')} expected"
        for name in saved | wanted
        if saved.get(name) != wanted.get(name)
    ]
    if len(lines) > _MAX_LISTED:
        lines[_MAX_LISTED:] = [f"  and {len(lines) - _MAX_LISTED} more"]
    if lines:
        cure = "Use the configuration it was saved with, or another directory"
        raise CheckpointError("\n".join([f"{path} holds the state of another configuration:", *lines, cure]))
