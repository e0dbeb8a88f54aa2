"""How much arithmetic and memory traffic a component needs: what a block says of itself, for benchmarks.

A model, not a measurement: it counts the multiply-adds of products that the equations need in the form in which they
are evaluated here, and nothing twice. Elementwise functions are not counted; they are bound by memory, and `traffic`
says how many bytes a component must read and write at least if its own intermediates never leave the cache.
"""

from __future__ import annotations

from typing import NamedTuple

FLOAT, COMPLEX = 4, 8  # bytes
MULTIPLY_ADD, COMPLEX_MULTIPLY_ADD = 2, 8  # FLOPs
COMPLEX_MATMUL = 6  # of each multiply-add in `complex_matmul`, which takes three real products
REAL_TIMES_COMPLEX = 4


class Cost(NamedTuple):
    """Of one component, forward and backward, over all tokens of a step."""

    forward: float  # FLOPs
    backward: float
    inputs: float = 0.0  # bytes
    outputs: float = 0.0

    @property
    def training(self) -> float:
        """FLOPs of both passes."""
        return self.forward + self.backward

    @property
    def traffic(self) -> float:
        """Least bytes of both passes: inputs and cotangents are read, outputs and cotangents of inputs are written."""
        return 3 * self.inputs + 2 * self.outputs

    def times(self, factor: float) -> Cost:
        """That of so many."""
        return Cost(*(factor * value for value in self))


def product(forward: float, inputs: float = 0.0, outputs: float = 0.0) -> Cost:
    """A product whose two factors both get a gradient: two products of the same size backwards."""
    return Cost(forward, 2 * forward, inputs, outputs)
