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


def by_parts(function: Callable[..., jax.Array], *trees: Any) -> Any:
    """`jax.tree.map` of a real elementwise function, which gets the parts of complex leaves one after the other."""
    return join(jax.tree.map(function, *map(split, trees)))


def _is_pair(x: Any) -> bool:
    return isinstance(x, Parts)
