"""The one exception of this package."""


class DataError(ValueError):
    """Text, tokenizer or cache that cannot be used; the message names the thing, where it stands and the cure."""
