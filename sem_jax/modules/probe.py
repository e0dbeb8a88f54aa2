"""Where a module shows what passes between its parts; an ordinary pass sees none of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import jax.numpy as jnp
from jax import Array


class Probe(Protocol):
    """Looks at the output of a named part of one module and returns it; the value itself is never changed."""

    def __call__(self, name: str, value: Array, /) -> Array:
        """The value."""
        ...


def unobserved(name: str, value: Array, /) -> Array:
    """The probe of every ordinary pass: adds nothing to the program."""
    del name
    return value


class LastPart:
    """A probe that keeps what the last part of a module puts out, which is the module's own output."""

    def __init__(self) -> None:
        self.wave = jnp.full((1, 1), jnp.nan, jnp.complex64)  # of a module that shows no part

    def __call__(self, name: str, value: Array, /) -> Array:
        """The value."""
        del name
        self.wave = value
        return value


class Observer:
    """Gives a probe to each module of a pass and keeps what the probe saw; this one looks at nothing.

    `sem_jax.diagnosis.walk` has one that looks. Under the loop over the layers whatever a probe needs or keeps must be
    arrays: `slots` go in, what `seen` returns comes out, both with a leading layer axis.

    Attributes:
      slots: by group ("encoder", a kind of block, "head"), what the probe of each of its layers is made from.
    """

    slots: Mapping[str, Any] = {}

    def probe(self, slots: Any) -> Probe:
        """The probe of one module."""
        del slots
        return unobserved

    def seen(self, probe: Probe, module: Any, state: Any, context: Any) -> Any:
        """What is kept of a module's pass: a pytree of arrays.

        Args:
          probe: as from `probe`, after the pass.
          module: an encoder or a block; None for the head.
          state: the module's, before the pass.
          context: `Context` of the pass.
        """
        del probe, module, state, context


class OutputObserver(Observer):
    """Keeps what every module puts out."""

    def probe(self, slots: Any) -> LastPart:
        """See `Observer`."""
        del slots
        return LastPart()

    def seen(self, probe: Any, module: Any, state: Any, context: Any) -> Any:
        """See `Observer`."""
        del module, state, context
        return probe.wave
