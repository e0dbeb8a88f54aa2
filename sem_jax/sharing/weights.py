"""The weights of a model as one safetensors file: a tensor for each leaf, under the name of its attribute.

The names are paths of attributes, such as `mixers.ssm.decay`; layers of a kind are stacked on the leading axis, as in
the model. Complex leaves have the format's own type C64. In a quantised file a large matrix is codes, lows and
scales instead, as `sem_jax.sharing.quantise` says.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from sem_jax.config import ModelConfig
from sem_jax.config.sizes import count_weights
from sem_jax.data.files import content_digest, require_regular
from sem_jax.data.seal import SEAL
from sem_jax.modules.model import ModelParts, abstract_model
from sem_jax.optim import is_sound
from sem_jax.sharing.quantise import Quantisation, from_tensors, is_quantised, stored_forms, to_tensors
from sem_jax.training.leaf_record import CheckpointError, Record, require_same_forms

_TYPES = {"F32": "float32", "C64": "complex64", "I32": "int32", "U8": "uint8", "F16": "float16"}
_LONGEST_HEADER = 2**20  # bytes; a model has some hundred tensors, and each takes about a hundred bytes
_LONGEST_NAME = 80  # characters that a message shows


def write_weights(path: Path, parts: ModelParts, how: Quantisation | None = None) -> None:
    """Writes parameters and buffers.

    Args:
      path: of the file.
      parts: of the model.
      how: to round the matrices; None: every number as it is.

    Raises:
      CheckpointError: a number is not finite, or too large to be rounded.
      OSError, safetensors.SafetensorError: the file cannot be written.
    """
    safetensors.numpy.save_file(_stored(parts, how), path, metadata={"format": "jax"})


def rounded(parts: ModelParts, how: Quantisation) -> ModelParts:
    """The model that `read_weights` gives back after `write_weights`.

    Raises:
      CheckpointError: a number is not finite, or too large to be rounded.
    """
    return _restored(parts, _stored(parts, how), how)


def read_weights(path: Path, config: ModelConfig, digest: str | None, how: Quantisation | None = None) -> ModelParts:
    """The model of a configuration with the weights of a file, to the bit.

    Names, types and shapes are compared with those of the configuration before a tensor is read.

    Args:
      path: of the file.
      config: of the model.
      digest: of the file's content; None: it is not known.
      how: its matrices were rounded; None: every number is as it was.

    Raises:
      CheckpointError: the file is missing, damaged or of another configuration, or holds numbers that no training
        leaves behind.
    """
    cure = "get the folder once more from where it came, or export it again"
    try:
        size = require_regular(path)
        # Before the model is traced: each weight takes four bytes, or the bits of a code, and the count is right within
        # a factor of two.
        if size * 32 < count_weights(config) * (how.bits if how else 32):
            raise CheckpointError(
                f"{path} has {size:_} bytes, far too few for the {count_weights(config):.1e} weights that config.json "
                f"tells of; {cure}"
            )
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
        if length > _LONGEST_HEADER:
            raise CheckpointError(
                f"{path} says that its header has {length:_} bytes, where {_LONGEST_HEADER:_} are the most that make "
                f"sense; {cure}"
            )
        with safetensors.safe_open(path, framework="numpy") as file:
            expected = abstract_model(config)
            names = _stored_forms(expected, how)
            require_same_forms(_forms(file), names, path)
            if digest not in (None, content_digest(path)):
                raise CheckpointError(
                    f"{path} has changed since it was exported; {cure}. If you changed it on purpose, delete "
                    f'"weights" and "{SEAL}" from config.json'
                )
            tensors = {name: file.get_tensor(name) for name in names}
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing; {cure}") from None
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}; {cure}") from error
    except safetensors.SafetensorError as error:
        raise CheckpointError(f"{path} is no sound safetensors file ({error!s:.200}); {cure}") from error
    for name, tensor in tensors.items():
        _require_sound(name, tensor, str(path), cure)
        _require_nodes(name, tensor, config.hidden_dim, str(path), cure)
    return _restored(expected, tensors, how)


def _stored(parts: ModelParts, how: Quantisation | None) -> dict[str, np.ndarray]:
    """The tensors of a file."""
    tensors: dict[str, np.ndarray] = {}
    chosen = _chosen(parts, how)
    for name, leaf in _named(parts).items():
        array = np.array(jax.device_get(leaf), order="C")
        _require_sound(name, array, "this checkpoint", "choose another one")
        stored = to_tensors(name, array, chosen[name])
        if any(tensor.dtype == np.float16 and not np.isfinite(tensor).all() for tensor in stored.values()):
            raise CheckpointError(f"{name} in this checkpoint holds numbers too large to be rounded; leave --bits out")
        tensors |= stored
    return tensors


def _restored(parts: ModelParts, tensors: dict[str, np.ndarray], how: Quantisation | None) -> ModelParts:
    """The model that tensors hold; `parts` gives its structure."""
    chosen = _chosen(parts, how)
    leaves = [from_tensors(name, leaf, chosen[name], tensors) for name, leaf in _named(parts).items()]
    return jax.tree.unflatten(jax.tree.structure(parts), map(jnp.asarray, leaves))


def _stored_forms(parts: ModelParts, how: Quantisation | None) -> dict[str, Any]:
    """What has the shape and the dtype of each tensor of a file."""
    chosen = _chosen(parts, how)
    forms = [stored_forms(name, leaf, chosen[name]) for name, leaf in _named(parts).items()]
    return {name: form for each in forms for name, form in each.items()}


def _chosen(parts: ModelParts, how: Quantisation | None) -> dict[str, Quantisation | None]:
    """How each leaf is rounded; None: not at all."""
    marked = jax.tree.map(is_quantised, parts.params, parts.decays())
    return {name: how if mark is True else None for name, mark in _named(parts.replace(params=marked)).items()}


def _named(parts: ModelParts) -> dict[str, Any]:
    """The leaves by name, in the order of the tree; parameters and buffers are attributes of the same modules."""
    leaves = jax.tree_util.tree_leaves_with_path(parts)
    return {jax.tree_util.keystr(path[1:], simple=True, separator="."): leaf for path, leaf in leaves}


def _forms(file: Any) -> Record:
    record = {}
    for name in file.keys():  # noqa: SIM118 (it is no mapping)
        tensor = file.get_slice(name)
        dtype = tensor.get_dtype()
        shown = name if name.isprintable() and len(name) <= _LONGEST_NAME else f"{name!r:.{_LONGEST_NAME}}"
        record[shown] = {"dtype": _TYPES.get(dtype, dtype), "shape": tensor.get_shape()}
    return record


def _require_sound(name: str, leaf: np.ndarray, where: str, cure: str) -> None:
    if jnp.issubdtype(leaf.dtype, jnp.inexact) and not is_sound(leaf).all():
        raise CheckpointError(f"{name} in {where} holds numbers that are not finite, or too large to square; {cure}")


def _require_nodes(name: str, leaf: np.ndarray, num_nodes: int, where: str, cure: str) -> None:
    """Raises where an edge leads to a node that does not exist; JAX would silently take another one."""
    if leaf.dtype == np.int32 and not (leaf.min(initial=0) >= 0 and leaf.max(initial=0) < num_nodes):
        raise CheckpointError(f"{name} in {where} leads to nodes outside of 0..{num_nodes - 1}; {cure}")
