"""Complex leaves as pairs of real arrays: for arithmetic in which the two parts never meet.

XLA multiplies a complex array by a real number as by a complex one, and divides it by a routine that guards against
overflow; neither is vectorised on a CPU.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class Parts(NamedTuple):
    """A complex array; a node of a tree whose leaves are real."""

    real: jax.Array
    imag: jax.Array


def split(tree: Any) -> Any:
    """The tree with `Parts` in the place of complex leaves."""
    return jax.tree.map(lambda x: Parts(x.real, x.imag) if jnp.iscomplexobj(x) else x, tree)


def join(tree: Any) -> Any:
    """The inverse of `split`."""
    return jax.tree.map(lambda x: jax.lax.complex(*x) if _is_pair(x) else x, tree, is_leaf=_is_pair)


def by_parts(function: Callable[..., jax.Array], *arrays: jax.Array) -> jax.Array:
    """A real elementwise function, applied to the real and to the imaginary parts of arrays of one dtype."""
    if not jnp.iscomplexobj(arrays[0]):
        return function(*arrays)
    return jax.lax.complex(function(*(x.real for x in arrays)), function(*(x.imag for x in arrays)))


def _is_pair(x: Any) -> bool:
    return isinstance(x, Parts)
