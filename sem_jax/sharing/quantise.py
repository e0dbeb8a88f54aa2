"""Weights of 8 or 4 bits: rounding to the nearest, in groups that share a grid, of real and imaginary parts apart.

A row, the last axis of a matrix, over which a product sums, is cut into groups of neighbours. The weights of a group
from its smallest, a, to its largest, b, are laid on a grid of 2^bits points:

    low = a,  rounded down to float16        scale = (b − low) / (2^bits − 1),  rounded up to float16

    code = round((weight − low) / scale)     weight' = low + code · scale,      |weight' − weight| <= scale / 2

but for the last rounding of float32. Codes of 4 bits lie two in a byte, the first in its low half; the half that an odd
row leaves over is 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from sem_jax.config import ConfigError

BITS = (8, 4)
GROUP = 64  # weights that share a grid, whose low and scale take half a bit of each
_LARGEST_GROUP = 2**16
_KINDS = ("codes", "lows", "scales")
_NARROWEST = 16  # weights of a row; the grids of narrower ones would take what the codes save


class Quantisation(NamedTuple):
    """How weights are rounded."""

    bits: int  # 8 or 4
    group: int = GROUP  # weights that share a grid

    @property
    def steps(self) -> int:
        """Of a grid, from its lowest point to its highest."""
        return 2**self.bits - 1


def require_quantisation(bits: Any, group: Any, where: str) -> Quantisation:
    """The quantisation that a user or a file asks for.

    Raises:
      ConfigError: it is none that there is.
    """
    if type(bits) is not int or bits not in BITS or type(group) is not int or not 1 <= group <= _LARGEST_GROUP:
        raise ConfigError(
            f"{where} asks for weights of {bits!r:.40} bits in groups of {group!r:.40}; there are weights of 8 and of "
            f"4 bits, in groups of 1 to {_LARGEST_GROUP:_}"
        )
    return Quantisation(bits, group)


def is_quantised(form: Any, decays: bool) -> bool:
    """Whether a leaf is rounded: a matrix that weight decay touches, with rows long enough to share grids.

    Gains, biases, rates, phases and edge weights are few, and each counts; they stay as they are, as do small blocks.

    Args:
      form: what has a shape and a dtype.
      decays: as of `ModelParts.decays`.
    """
    return decays and len(form.shape) >= 2 and form.shape[-1] >= _NARROWEST


def stored_forms(name: str, form: Any, how: Quantisation | None) -> dict[str, Any]:
    """What has the shape and the dtype of each tensor that holds a leaf; no array is needed."""
    if how is None:
        return {name: form}
    *rows, width = form.shape
    codes = jax.ShapeDtypeStruct((*rows, -(-width * how.bits // 8)), np.uint8)
    of_groups = jax.ShapeDtypeStruct((*rows, -(-width // how.group)), np.float16)
    forms = (codes, of_groups, of_groups)
    return {f"{part}.{kind}": each for part in _parts(name, form) for kind, each in zip(_KINDS, forms, strict=True)}


def to_tensors(name: str, leaf: np.ndarray, how: Quantisation | None) -> dict[str, np.ndarray]:
    """The tensors that hold a leaf, of the names and forms of `stored_forms`; a `how` of None rounds nothing."""
    if how is None:
        return {name: leaf}
    parts = [leaf.real, leaf.imag] if np.iscomplexobj(leaf) else [leaf]
    return {
        f"{part}.{kind}": tensor
        for part, values in zip(_parts(name, leaf), parts, strict=True)
        for kind, tensor in zip(_KINDS, encode(values, how), strict=True)
    }


def from_tensors(name: str, form: Any, how: Quantisation | None, tensors: Mapping[str, np.ndarray]) -> np.ndarray:
    """The leaf of that shape and dtype from the tensors that hold it."""
    if how is None:
        return tensors[name]
    width = form.shape[-1]
    grids = [[tensors[f"{part}.{kind}"] for kind in _KINDS] for part in _parts(name, form)]
    parts = [decode(codes, lows, scales, width, how) for codes, lows, scales in grids]
    if len(parts) == 1:
        return parts[0]
    leaf = np.empty(form.shape, form.dtype)
    leaf.real, leaf.imag = parts
    return leaf


def encode(values: np.ndarray, how: Quantisation) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rounds rows of weights.

    Args:
      values: [..., I] float32, finite.
      how: to round.

    Returns:
      (codes [..., ceil(I · bits / 8)] uint8, lows and scales, each [..., ceil(I / group)] float16); a low or a scale is
      infinite where float16 does not reach.
    """
    width = values.shape[-1]
    starts = np.arange(0, width, how.group)
    with np.errstate(over="ignore", invalid="ignore"):  # infinite grids are for the caller to refuse
        lows = -_rounded_up(-np.minimum.reduceat(values, starts, axis=-1))
        scales = _rounded_up((np.maximum.reduceat(values, starts, axis=-1) - lows) / np.float32(how.steps))
        steps = np.where(scales == 0, np.float16(1), scales)  # a group of equal weights lies on its low
        codes = np.rint((values - _spread(lows, width, how)) / _spread(steps, width, how)).astype(np.uint8)
    return _packed(codes, how), lows, scales


def decode(codes: np.ndarray, lows: np.ndarray, scales: np.ndarray, width: int, how: Quantisation) -> np.ndarray:
    """The weights [..., width] float32 that `encode` has rounded to."""
    numbers = _unpacked(codes, width, how).astype(np.float32)
    return _spread(lows, width, how) + numbers * _spread(scales, width, how)


def _parts(name: str, form: Any) -> list[str]:
    return [f"{name}.real", f"{name}.imag"] if np.issubdtype(form.dtype, np.complexfloating) else [name]


def _spread(of_groups: np.ndarray, width: int, how: Quantisation) -> np.ndarray:
    """The value of each weight's group, [..., width] float32."""
    return of_groups[..., np.arange(width) // how.group].astype(np.float32)


def _rounded_up(values: np.ndarray) -> np.ndarray:
    """The smallest float16 numbers that are no smaller, so that a grid reaches over all weights of its group."""
    near = values.astype(np.float16)
    return np.where(near < values, np.nextafter(near, np.float16(np.inf)), near)


def _packed(codes: np.ndarray, how: Quantisation) -> np.ndarray:
    if how.bits == 8:
        return codes
    if codes.shape[-1] % 2:
        codes = np.concatenate([codes, np.zeros_like(codes[..., :1])], axis=-1)
    return codes[..., ::2] | codes[..., 1::2] << 4


def _unpacked(codes: np.ndarray, width: int, how: Quantisation) -> np.ndarray:
    if how.bits == 8:
        return codes
    return np.stack([codes & 15, codes >> 4], axis=-1).reshape(*codes.shape[:-1], -1)[..., :width]
