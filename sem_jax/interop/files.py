"""State dicts as files: .pt, .safetensors and .npz, none of which is ever allowed to run code."""

from __future__ import annotations

import io
import os
import pickletools
import warnings
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy

from sem_jax.data.arrays import read_array, write_arrays
from sem_jax.data.files import open_atomically, require_writable
from sem_jax.interop.errors import InteropError

# Types that numpy has no name for; the others of the format are spelled "F32", "I64" and so on.
_SAFETENSORS_TYPES = {"BF16": ml_dtypes.bfloat16, "BOOL": np.bool_}
_KINDS = {"F": "f", "I": "i", "U": "u"}
_MOST_COMPRESSED = 20  # times; weights as good as not at all, lists of edges perhaps fivefold
_SMALL = 2**28  # bytes that may come of any file
_LONGEST_NAME = 1000  # characters
_PICKLES_OF_OLD_FORMAT = 5  # magic number, version, system, content, keys of the storages that follow
_COMPILED = "_orig_mod."  # torch.compile puts it in front of the name of every module that it wraps


def read_state_dict(source: Mapping[str, Any] | str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """The arrays of a state dict by the original's names.

    Args:
      source: names to arrays (numpy, jax or torch), or a .pt, .safetensors or .npz file of them; a mapping that holds
        one under `model_state_dict` will do. The `_orig_mod.` of compiled modules is taken out of the names.

    Raises:
      InteropError: the file is missing, damaged, of another kind or holds more than arrays, or two entries have one
        name.
    """
    label, content = describe(source), source if isinstance(source, Mapping) else _read(Path(source))
    wrapped = content.get("model_state_dict")
    state = wrapped if isinstance(wrapped, Mapping) else content
    arrays: dict[str, np.ndarray] = {}
    for name, value in state.items():
        plain = str(name).replace(_COMPILED, "")
        if plain in arrays:
            raise InteropError(f"{label} holds {plain} twice, with and without {_COMPILED}; remove one of them")
        if not hasattr(value, "shape") or not hasattr(value, "dtype"):
            raise InteropError(
                f"{label} holds a {type(value).__name__} under {name}; give the names and arrays of "
                "model.state_dict(), or a checkpoint that holds them under model_state_dict"
            )
        arrays[plain] = _to_numpy(value, f"{name} in {label}")
    return arrays


def describe(source: Any) -> str:
    """What an error calls the source."""
    return "the mapping" if isinstance(source, Mapping) else str(source)


def write_state_dict(path: str | os.PathLike[str], arrays: Mapping[str, np.ndarray]) -> None:
    """Writes a .safetensors or .npz file, whole or not at all.

    Raises:
      InteropError: the name ends otherwise.
      DataError: the file cannot be written.
    """
    path = Path(path)
    require_writable_kind(path)
    # The safetensors writer takes the bytes as they lie in memory, whatever the strides say.
    dense = {name: np.array(array, order="C") for name, array in arrays.items()}
    if path.suffix == ".npz":
        write_arrays(path, dense)
        return
    with open_atomically(path) as file:
        file.write(safetensors.numpy.save(dense))


def require_writable_kind(path: str | os.PathLike[str]) -> None:
    """Raises InteropError unless the name is one for `write_state_dict`, DataError if nothing can be written there."""
    if Path(path).suffix not in (".safetensors", ".npz"):
        raise InteropError(f"{path} cannot be written: its name must end in .safetensors or .npz")
    require_writable(path)


def _read(path: Path) -> Mapping[str, Any]:
    reader = _READERS.get(path.suffix)
    if reader is None:
        raise InteropError(f"{path} is not a state dict: its name must end in {', '.join(_READERS)}")
    if not path.is_file():
        raise InteropError(f"{path} does not exist or is not a file; check the path")
    content = reader(path)
    if not isinstance(content, Mapping):
        raise InteropError(f"{path} holds a {type(content).__name__}; save model.state_dict()")
    return content


def _read_torch(path: Path) -> Any:
    try:
        import torch
    except ModuleNotFoundError:
        raise InteropError(
            f"{path} needs PyTorch to be read; install it with pip install '.[torch]', or save the state dict "
            "as .safetensors"
        ) from None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what a damaged file looks like; it becomes an error
            _require_honest_torch(path, torch)
            return torch.load(path, map_location="cpu", weights_only=True)
    except InteropError:
        raise
    except Exception as error:  # broken files raise whatever the parser at that byte happens to raise
        raise InteropError(
            f"{path} cannot be read as tensors alone ({_first_line(error)}); code in a file is never run, so save "
            "nothing but model.state_dict()"
        ) from error


def _require_honest_torch(path: Path, torch: Any) -> None:
    """Refuses what PyTorch does not survive: tensors larger than the file, endless names, an alignment of zero.

    PyTorch does not compress, so neither the archive nor the storages can hold more bytes than the file, and a tensor
    no more entries than its storage, unless one entry stands for many.
    """
    size = path.stat().st_size
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            _require_size(path, sum(member.file_size for member in archive.infolist()), size)
            for member in archive.infolist():
                name = member.filename.lower()  # PyTorch looks a record up whatever the case of its letters
                if name.endswith("data.pkl"):
                    _require_short_names(path, io.BytesIO(archive.read(member)))
                if name.endswith(".storage_alignment"):
                    _require_alignment(path, archive.read(member))
    else:
        with path.open("rb") as file:
            for _ in range(_PICKLES_OF_OLD_FORMAT):
                _require_short_names(path, file)
    tensors = _tensors(torch.load(path, map_location="meta", weights_only=True), torch.Tensor)
    storages = {}
    for tensor in tensors:
        if tensor.layout == torch.strided and not tensor.is_quantized:
            storage = tensor.untyped_storage()
            storages[storage._cdata] = storage.nbytes()
            _require_size(path, tensor.numel() * tensor.element_size(), storage.nbytes())
    _require_size(path, sum(storages.values()), size)


def _require_short_names(path: Path, file: IO[bytes]) -> None:
    """Reads one pickle, of which nothing is run, and refuses one with a name of absurd length.

    PyTorch searches its own message for the names that it refuses, in a time that grows with the square of a name.
    """
    for _, argument, _ in pickletools.genops(file):
        if isinstance(argument, str) and len(argument) > _LONGEST_NAME:
            raise InteropError(
                f"{path} holds a name of {len(argument):,} characters; save nothing but model.state_dict()"
            )


def _require_alignment(path: Path, content: bytes) -> None:
    """Refuses what PyTorch would divide by, in C++ and unasked, if it were zero."""
    if not content.isdigit() or int(content) == 0:
        raise InteropError(
            f"{path} aligns its tensors by {content[:20]!r} bytes, which must be at least 1; save the tensors once more"
        )


def _tensors(content: Any, kind: type) -> list[Any]:
    """All tensors in nested containers, which may contain themselves."""
    found, seen, left = [], set(), [content]
    while left:
        value = left.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, kind):
            found.append(value)
        elif isinstance(value, Mapping):
            left += value.values()
        elif isinstance(value, list | tuple | set):
            left += value
    return found


def _require_size(path: Path, declared: int, present: int) -> None:
    if declared > present:
        raise InteropError(
            f"{path} tells of {declared:_} bytes where it holds {present:_}: it is damaged, compressed or made to fill "
            "the memory; save the tensors once more, each by itself (tensor.contiguous())"
        )


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    try:
        return {
            name: np.frombuffer(entry["data"], _safetensors_type(entry["dtype"])).reshape(entry["shape"])
            for name, entry in safetensors.deserialize(path.read_bytes())
        }
    except (safetensors.SafetensorError, OSError, TypeError, ValueError) as error:
        raise InteropError(f"{path} is no readable safetensors file ({_first_line(error)}); write it again") from error


def _safetensors_type(name: str) -> np.dtype:
    return np.dtype(_SAFETENSORS_TYPES.get(name) or f"<{_KINDS.get(name[0], name)}{int(name[1:]) // 8}")


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    try:
        with zipfile.ZipFile(path) as archive:
            return _members(path, archive)
    except InteropError:
        raise
    except Exception as error:  # as above
        raise InteropError(
            f"{path} is no readable .npz file of arrays ({_first_line(error)}); write it again"
        ) from error


def _members(path: Path, archive: zipfile.ZipFile) -> dict[str, np.ndarray]:
    members = archive.infolist()
    names = [member.filename.removesuffix(".npy") for member in members]
    if len(set(names)) < len(names):
        raise ValueError("two arrays have one name")
    declared, size = sum(member.file_size for member in members), path.stat().st_size
    if declared > max(_SMALL, _MOST_COMPRESSED * size):
        raise InteropError(
            f"{path} tells of {declared:_} bytes in {size:_}, which no weights can be compressed to; save them with "
            "numpy.savez"
        )
    arrays = {}
    for name, member in zip(names, members, strict=True):
        with archive.open(member) as file:
            arrays[name] = read_array(file, member.file_size)
    return arrays


_READERS: dict[str, Callable[[Path], Any]] = {".pt": _read_torch, ".safetensors": _read_safetensors, ".npz": _read_npz}


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]:.200}"


def _to_numpy(value: Any, label: str) -> np.ndarray:
    if not hasattr(value, "detach"):
        return np.asarray(value)
    import torch

    if value.layout != torch.strided or value.is_quantized or value.device.type == "meta":
        kind = "quantised" if value.is_quantized else "meta" if value.device.type == "meta" else value.layout
        raise InteropError(f"{label} is a {kind} tensor; save it dense, on the CPU and with its numbers")
    if value.dtype not in _torch_types(torch):
        raise InteropError(f"{label} has type {value.dtype}, which numpy lacks; convert it with tensor.float()")
    tensor = value.detach().cpu()
    if tensor.dtype == torch.bfloat16:  # numpy itself does not know it
        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.resolve_conj().resolve_neg().numpy()


def _torch_types(torch: Any) -> tuple[Any, ...]:
    names = "float16 float32 float64 bfloat16 uint8 int8 int16 int32 int64 bool complex64 complex128"
    return tuple(getattr(torch, name) for name in names.split())
