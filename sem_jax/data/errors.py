"""The one exception of this package."""

from sem_jax.errors import SemJaxError


class DataError(SemJaxError, ValueError):
    """Text, tokenizer or cache that cannot be used; the message names the thing, where it stands and the cure."""
