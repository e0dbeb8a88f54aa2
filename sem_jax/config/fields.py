"""What stands beside a field of the configuration: its meaning, its unit and its range.

Validation, `--help`, docs/configuration.md and the messages of errors all read it from here.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from sem_jax.errors import SemJaxError

T = TypeVar("T")

# Bounds that many fields share. What lies beyond is a slip of the hand or a file made to do harm, not an experiment.
MOST_STEPS = 10**9  # of a run; also documents, batches and intervals
LONGEST = 2**22  # tokens of one sequence or context
MOST_IDS = 2**20  # of a vocabulary
STEEPEST = 1e6  # factors that multiply what is of order 1: their squares stay far inside float32


class ConfigError(SemJaxError, ValueError):
    """A configuration value that is unknown, of the wrong type or impossible; the message names field and cure."""


@dataclass(frozen=True)
class Range:
    """The values that a number may take; None: no limit.

    >>> 0.0 in Range(above=0, at_most=1)
    False
    >>> str(Range(above=0, at_most=1))
    'above 0 and at most 1'
    """

    above: float | None = None
    at_least: float | None = None
    below: float | None = None
    at_most: float | None = None

    def __contains__(self, value: float) -> bool:
        return (
            (self.above is None or value > self.above)
            and (self.at_least is None or value >= self.at_least)
            and (self.below is None or value < self.below)
            and (self.at_most is None or value <= self.at_most)
        )

    def __str__(self) -> str:
        limits = dataclasses.asdict(self).items()
        return " and ".join(f"{name.replace('_', ' ')} {limit:_}" for name, limit in limits if limit is not None)


@dataclass(frozen=True)
class Setting:
    """One field of a group, with all that is known about it."""

    name: str
    hint: Any  # its type; a dataclass where the field is itself a group
    default: Any
    meaning: str
    unit: str
    range: Range

    @property
    def group(self) -> type | None:
        """The dataclass of a field that is itself a group."""
        return self.hint if isinstance(self.hint, type) and dataclasses.is_dataclass(self.hint) else None


def setting(
    default: T,
    meaning: str,
    *,
    unit: str = "",
    above: float | None = None,
    at_least: float | None = None,
    below: float | None = None,
    at_most: float | None = None,
) -> T:
    """A dataclass field that carries its meaning, unit and range.

    Args:
      default: the value of a configuration that does not name the field.
      meaning: what the field is, and what its choices or special values do.
      unit: what one of it is, such as "tokens"; empty for a pure number or a word.
      above, at_least, below, at_most: limits of a number, or of each number of a tuple.
    """
    metadata = {"meaning": meaning, "unit": unit, "range": Range(above, at_least, below, at_most)}
    return dataclasses.field(default=default, metadata=metadata)


def settings(group: type) -> dict[str, Setting]:
    """The fields of a group by name, in their order."""
    hints = typing.get_type_hints(group)
    return {
        field.name: Setting(
            name=field.name,
            hint=hints[field.name],
            default=field.default,
            meaning=field.metadata.get("meaning", ""),
            unit=field.metadata.get("unit", ""),
            range=field.metadata.get("range", Range()),
        )
        for field in dataclasses.fields(group)
    }


def walk(group: type, path: str = "") -> Iterator[tuple[str, type, list[Setting]]]:
    """Every group below `group` and itself, as (path such as "model.encoder.", dataclass, its own fields)."""
    found = settings(group).values()
    yield path, group, [each for each in found if each.group is None]
    for each in found:
        if each.group is not None:
            yield from walk(each.group, f"{path}{each.name}.")


def shown(value: Any) -> str:
    """A value as a message shows it: on one line, and no longer than a line."""
    try:
        text = repr(value)
    except ValueError:  # Python refuses to print an integer of more than 4300 digits
        text = "a number of thousands of digits"
    return text if len(text) <= 80 else f"{text[:60]}...{text[-10:]}"


def require(condition: bool, message: str) -> None:
    """Raises ConfigError with the message unless the condition holds."""
    if not condition:
        raise ConfigError(message)
