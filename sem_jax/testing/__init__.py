"""What a test of a training run needs: faults on purpose, and comparison of states to the bit."""

from sem_jax.testing.faults import Fault, Place, make_faulty_step, planting, resolve
from sem_jax.testing.states import differing_leaves, skip_step

__all__ = [
    "Fault",
    "Place",
    "differing_leaves",
    "make_faulty_step",
    "planting",
    "resolve",
    "skip_step",
]
