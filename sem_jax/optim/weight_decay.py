"""Which parameters decay: masks for `optax.add_decayed_weights`."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

# Their leaves hold all layers, stacked on a leading axis.
STACKED_GROUPS = frozenset({"mixers", "propagators"})

# Arrays of two dimensions that multiply no vector: a bias of (re, im) pairs, and the SSM's decay and phase of each
# state in each group, whose zero is a particular time constant rather than the absence of one.
NO_MATRICES = frozenset({"bias", "decay", "phase"})


def matrices_only(params: optax.Params) -> Any:
    """Marks the parameters that have two or more dimensions within one layer and are not named in `NO_MATRICES`.

    Args:
      params: nested mapping of arrays. The leaves under the top-level keys `STACKED_GROUPS` have shape [L, ...], and
        their layer axis does not count: a stack [L, D] of gains is no matrix.

    Returns:
      A tree of bools with the structure of `params`.
    """
    return jax.tree.map_with_path(_is_matrix, params)


def decay_all(params: optax.Params) -> Any:
    """Marks every parameter: biases, gains and scalars too, as the reference does (SPEC section 2, Optimizer).

    Args:
      params: any tree of arrays.

    Returns:
      A tree of bools with the structure of `params`.
    """
    return jax.tree.map(lambda _: True, params)


def _is_matrix(path: tuple[Any, ...], leaf: jax.Array) -> bool:
    group, name = (jax.tree_util.keystr(part, simple=True) for part in (path[:1], path[-1:]))
    return jnp.ndim(leaf) - (group in STACKED_GROUPS) >= 2 and name not in NO_MATRICES
