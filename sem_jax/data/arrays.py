"""Tokens and frequencies from .npy files, arrays to .npz files; every id and shape is checked on the host."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import IO

import numpy as np

from sem_jax.data.errors import DataError
from sem_jax.data.files import open_atomically, require_regular, require_writable

_MOST_AXES = 32


def checked_tokens(tokens: np.ndarray, vocab_size: int) -> np.ndarray:
    """The tokens as int32.

    Raises:
      DataError: they are no integers of shape [B, S], or an id is outside the vocabulary.
    """
    if tokens.ndim != 2 or not np.issubdtype(tokens.dtype, np.integer):
        raise DataError(f"tokens must be integers of shape [B, S], got {tokens.dtype} of shape {list(tokens.shape)}")
    # An index outside the array would silently read another row, or NaN.
    if tokens.size and (tokens.min() < 0 or tokens.max() >= vocab_size):
        raise DataError(
            f"token ids {tokens.min()}..{tokens.max()} leave the vocabulary 0..{vocab_size - 1}; "
            "encode the text with this model's own tokenizer"
        )
    return tokens.astype(np.int32)


def read_tokens(path: str | Path, vocab_size: int) -> np.ndarray:
    """Token ids of a .npy file, [B, S] int32, with a token and its successor at least.

    Raises:
      DataError: the file cannot be read or holds anything else.
    """
    array = _read_npy(path)
    try:
        tokens = checked_tokens(array, vocab_size)
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
    if not len(tokens) or tokens.shape[1] < 2:
        raise DataError(f"{path}: tokens of shape {list(tokens.shape)} hold no token with a successor; give S >= 2")
    return tokens


def read_token_freqs(path: str | Path, vocab_size: int) -> np.ndarray:
    """Token frequencies of a .npy file, [V] float32.

    Raises:
      DataError: the file cannot be read or holds anything but one finite number >= 0 for each token.
    """
    freqs = _read_npy(path)
    if freqs.shape != (vocab_size,) or freqs.dtype.kind not in "fiu":
        raise DataError(
            f"{path}: frequencies must be real numbers of shape [{vocab_size}], one for each token, got {freqs.dtype} "
            f"of shape {list(freqs.shape)}"
        )
    freqs = freqs.astype(np.float32)
    if not np.all(np.isfinite(freqs) & (freqs >= 0)):
        raise DataError(f"{path}: every frequency must be finite and not negative; count the tokens again")
    return freqs


def write_arrays(path: str | Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes a .npz file, whole or not at all.

    Raises:
      DataError: the name ends otherwise, or the file cannot be written.
    """
    require_npz(path)
    with open_atomically(Path(path)) as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]


def require_npz(path: str | Path) -> None:
    """Raises DataError unless the name is one for `write_arrays`, in a place that can be written to."""
    if Path(path).suffix != ".npz":
        raise DataError(f"{path} cannot be written: the name of a file of several arrays must end in .npz")
    require_writable(path)


def _read_npy(path: str | Path) -> np.ndarray:
    cure = "give a .npy file written by numpy.save"
    try:
        size = require_regular(path)
        with open(path, "rb") as file:
            return read_array(file, size)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}; {cure}") from error
    except ValueError as error:
        raise DataError(f"cannot read {path}: {error}; {cure}") from error


def read_array(file: IO[bytes], size: int) -> np.ndarray:
    """The array of a .npy file, which is asked for its size before memory is taken for it.

    Args:
      file: at its start.
      size: of the file in bytes.

    Raises:
      OSError: the file cannot be read.
      ValueError: it holds no single array of numbers, or not as much as its header says.
    """
    try:
        version = np.lib.format.read_magic(file)
        read_header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        shape, fortran_order, dtype = read_header[version](file)
    except OSError:
        raise
    except Exception as error:  # a header is a Python literal, whose parser raises whatever it stumbles over
        raise ValueError(f"it is no .npy file of one array ({type(error).__name__}: {error!s:.100})") from error
    if dtype.hasobject:
        raise ValueError("it holds pickled objects, which are never loaded")
    count = math.prod(shape)
    if min(shape, default=0) < 0 or len(shape) > _MOST_AXES or file.tell() + count * dtype.itemsize != size:
        raise ValueError(f"its header tells of {dtype} of shape {list(shape)}, and the file has {size:_} bytes")
    array = np.frombuffer(file.read(count * dtype.itemsize), dtype, count) if count else np.empty(0, dtype)
    return array.reshape(shape, order="F" if fortran_order else "C")
