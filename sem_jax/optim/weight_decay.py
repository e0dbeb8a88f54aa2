"""Weight decay: which parameters decay, and how much of it each one gets."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from sem_jax.optim.groups import parameter_factors
from sem_jax.optim.parts import by_parts

# Their leaves hold all layers, stacked on a leading axis.
STACKED_GROUPS = frozenset({"mixers", "propagators"})

# Arrays of two dimensions that multiply no vector: a bias of (re, im) pairs, and the SSM's decay and phase of each
# state in each group, whose zero is a particular time constant rather than the absence of one.
NO_MATRICES = frozenset({"bias", "decay", "phase"})


def add_weight_decay(
    weight_decay: float, decays: Callable[[optax.Params], Any], factors: Mapping[str, float]
) -> optax.GradientTransformation:
    """Adds λ f θ to the updates, with a factor f for each group (Loshchilov & Hutter, 2019, arXiv:1711.05101).

    Without factors it is `optax.add_decayed_weights(weight_decay, mask=decays)`. A factor multiplies the decay that a
    parameter has: one that `decays` does not mark has none, and no factor gives it any.

    Args:
      weight_decay: λ.
      decays: from the parameters to a tree of bools, such as `matrices_only`.
      factors: f by path, see `parameter_factors`; 1 where there is none.

    Returns:
      A stateless transformation, whose update needs the parameters.

    Raises:
      ValueError: init got a tree in which a path names nothing, or nothing that decays although its factor is not 0;
        or update is called without parameters.
    """

    def init_fn(params: optax.Params) -> optax.EmptyState:
        _require_decay(factors, decays(params), params)
        return optax.EmptyState()

    def update_fn(
        updates: optax.Updates, state: optax.EmptyState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, optax.EmptyState]:
        if params is None:
            raise ValueError("weight decay adds a share of the parameters: call update with params")

        def add(update: jax.Array, param: jax.Array, decay: bool, factor: float) -> jax.Array:
            strength = weight_decay * factor
            return by_parts(lambda u, p: u + strength * p, update, param) if decay and strength else update

        return jax.tree.map(add, updates, params, decays(params), parameter_factors(factors, params)), state

    return optax.GradientTransformation(init_fn, update_fn)


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


def _require_decay(factors: Mapping[str, float], decays: Any, params: optax.Params) -> None:
    for path, factor in factors.items():
        elsewhere = jax.tree.leaves(parameter_factors({path: 0.0}, params))  # 0 where the path leads
        if factor and not any(d and not e for d, e in zip(jax.tree.leaves(decays), elsewhere, strict=True)):
            raise ValueError(f"nothing in {path!r} decays, so its factor {factor:g} multiplies nothing; leave it out")
