"""The one exception of this package."""


class InteropError(ValueError):
    """A state dict that cannot be read, written or understood; the message names the thing and the cure."""
