"""From nested values to typed, validated dataclasses, and back to a `ConfigDict`."""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal, TypeVar

import numpy as np
from ml_collections import ConfigDict

from sem_jax.config.experiment import Config
from sem_jax.config.fields import ConfigError, Range, settings, shown
from sem_jax.config.rules import check_rules

# What a device can hold: counts are int32 there, numbers float32, which has no subnormal ones on most devices.
_LARGEST_INT = 2**31 - 1
_LARGEST_FLOAT = 3.4028234e38
_SMALLEST_FLOAT = 1.1754944e-38

T = TypeVar("T")


def default() -> ConfigDict:
    """The default configuration as a locked `ConfigDict`: the start of every config file."""
    return to_config_dict(Config())


def to_config_dict(config: Config) -> ConfigDict:
    """The `ConfigDict` with the same fields and values."""
    return ConfigDict(dataclasses.asdict(config)).lock()


def build(config: Mapping[str, Any] | ConfigDict) -> Config:
    """Typed and validated configuration.

    Args:
      config: nested mapping; missing fields take their defaults.

    Raises:
      ConfigError: a field is unknown, of the wrong type or has an impossible value.
    """
    values = config.to_dict() if isinstance(config, ConfigDict) else config
    typed = _from_mapping(Config, values, "config")
    check_rules(typed)
    return typed


def _from_mapping(group: type[T], values: Any, path: str) -> T:
    if not isinstance(values, Mapping):
        raise ConfigError(f"{path} must be a group of fields, got {shown(values)}")
    known = settings(group)
    for name in values:
        if name not in known:
            close = difflib.get_close_matches(str(name), known, n=1)
            cure = f"did you mean {path}.{close[0]}?" if close else f"its fields are {', '.join(known)}"
            raise ConfigError(f"{path}.{name} does not exist; {cure}")
    typed: dict[str, Any] = {}
    for name, value in values.items():
        field, where = known[name], f"{path}.{name}"
        if field.group is not None:
            typed[name] = _from_mapping(field.group, value, where)
        else:
            typed[name] = _typed(field.hint, value, where)
            _check_range(typed[name], field.range, field.meaning, where)
    return group(**typed)


def _typed(hint: Any, value: Any, path: str) -> Any:
    if typing.get_origin(hint) is Literal:
        choices = typing.get_args(hint)
        if value not in choices:
            raise ConfigError(f"{path} = {shown(value)} is not one of {', '.join(map(str, choices))}")
        return value
    if typing.get_origin(hint) is tuple:
        hints = typing.get_args(hint)
        if not isinstance(value, list | tuple) or len(value) != len(hints):  # JSON knows no tuples
            raise ConfigError(f"{path} = {shown(value)} must be {len(hints)} values, such as {(0,) * len(hints)}")
        return tuple(
            _typed(each, entry, f"{path}[{i}]") for i, (each, entry) in enumerate(zip(hints, value, strict=True))
        )
    assert not isinstance(hint, types.UnionType), f"{path}: unions are not supported"
    if hint in (int, float) and isinstance(value, int | float) and not isinstance(value, bool):
        return _number(hint, value, path)
    if hint in (int, float) or not isinstance(value, hint):
        raise ConfigError(f"{path} = {shown(value)} must be of type {hint.__name__}")
    return _text(value, path) if hint is str else value


def _text(value: str, path: str) -> str:
    """The value, if files, terminals and JSON can hold it."""
    if "\0" in value or any("\ud800" <= character <= "\udfff" for character in value):
        raise ConfigError(f"{path} = {shown(value)} must be text without NUL and without half of a surrogate pair")
    return value


def _number(hint: type, value: float, path: str) -> float:
    """The value as an int or a float, if it is one that a device can hold."""
    if hint is float:
        if not abs(value) <= _LARGEST_FLOAT:  # a NaN is not, either
            raise ConfigError(f"{path} = {shown(value)} must be finite, and in float32: at most {_LARGEST_FLOAT:.2g}")
        if 0 < abs(value) < _SMALLEST_FLOAT:
            raise ConfigError(f"{path} = {shown(value)} is 0 in float32, which holds {_SMALLEST_FLOAT:.2g} at least")
        return float(value)
    if isinstance(value, float) and not value.is_integer():
        raise ConfigError(f"{path} = {shown(value)} must be of type int")
    if abs(value) > _LARGEST_INT:
        raise ConfigError(f"{path} = {shown(value)} must fit in 32 bits, so be at most {_LARGEST_INT:_}")
    return int(value)  # 1e3 is a natural way to write a number of steps


def _check_range(value: Any, allowed: Range, meaning: str, path: str) -> None:
    """Raises unless the value lies in its range, and is not rounded onto an open end of it on a device."""
    if isinstance(value, tuple):
        for i, entry in enumerate(value):
            _check_range(entry, allowed, meaning, f"{path}[{i}]")
    elif isinstance(value, int | float) and value not in allowed:
        raise ConfigError(f"{path} = {value!r} must be {allowed}; it is: {meaning}")
    elif isinstance(value, float) and float(np.float32(value)) not in Range(above=allowed.above, below=allowed.below):
        raise ConfigError(f"{path} = {value!r} is {np.float32(value)} in float32, and must be {allowed} there, too")
