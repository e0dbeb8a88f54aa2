"""Where a module shows what passes between its parts, for `sem_jax.diagnosis`; a training step sees none of it."""

from __future__ import annotations

from typing import Protocol

from jax import Array


class Probe(Protocol):
    """Looks at the output of a named part and returns it; the value itself is never changed."""

    def __call__(self, name: str, value: Array, /) -> Array:
        """The value."""
        ...


def unobserved(name: str, value: Array, /) -> Array:
    """The probe of every ordinary call: adds nothing to the program."""
    del name
    return value
