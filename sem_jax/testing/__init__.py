"""What a test of a training run needs: faults on purpose, and the state that a refused step leaves."""

from sem_jax.testing.faults import Fault, Place, make_faulty_step, planting, resolve
from sem_jax.testing.states import skip_step

__all__ = [
    "Fault",
    "Place",
    "make_faulty_step",
    "planting",
    "resolve",
    "skip_step",
]
