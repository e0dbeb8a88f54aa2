"""Which parameters decay: masks for `optax.add_decayed_weights`."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

# Their leaves hold all layers, stacked on a leading axis.
STACKED_GROUPS = frozenset({"mixers", "propagators"})


def matrices_only(params: optax.Params) -> Any:
    """Marks the parameters that have two or more dimensions within one layer.

    Args:
      params: nested mapping of arrays. The leaves under the top-level keys `STACKED_GROUPS` have shape [L, ...], and
        their layer axis does not count: a stack [L, D] of biases is no matrix.

    Returns:
      A tree of bools with the structure of `params`.
    """
    return jax.tree.map_with_path(lambda path, leaf: jnp.ndim(leaf) - _layer_axes(path) >= 2, params)


def decay_all(params: optax.Params) -> Any:
    """Marks every parameter: biases, gains and scalars too, as the reference does (SPEC section 2, Optimizer).

    Args:
      params: any tree of arrays.

    Returns:
      A tree of bools with the structure of `params`.
    """
    return jax.tree.map(lambda _: True, params)


def _layer_axes(path: tuple[Any, ...]) -> int:
    return int(jax.tree_util.keystr(path[:1], simple=True) in STACKED_GROUPS)
