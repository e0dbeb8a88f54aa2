"""The one exception of this package."""

from sem_jax.errors import SemJaxError


class InteropError(SemJaxError, ValueError):
    """A state dict that cannot be read, written or understood; the message names the thing and the cure."""
