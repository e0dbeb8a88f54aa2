"""Weight decay: which parameters decay, and how much of it each one gets."""

from collections.abc import Mapping
from typing import Any

import jax
import optax

from sem_jax.optim.groups import parameter_factors
from sem_jax.optim.parts import by_parts


def add_weight_decay(
    weight_decay: float, decays: Any | None, factors: Mapping[str, float]
) -> optax.GradientTransformation:
    """Adds λ f θ to the updates, with a factor f for each group (Loshchilov & Hutter, 2019, arXiv:1711.05101).

    Without factors it is `optax.add_decayed_weights(weight_decay, mask=decays)`. A factor multiplies the decay that a
    parameter has: one that `decays` does not mark has none, and no factor gives it any.

    Args:
      weight_decay: λ.
      decays: tree of bools with the structure of the parameters, as `ModelParts.decays` gives it; None: all decay.
      factors: f by path, see `parameter_factors`; 1 where there is none.

    Returns:
      A stateless transformation, whose update needs the parameters.

    Raises:
      ValueError: init got a tree in which a path names nothing, or nothing that decays although its factor is not 0;
        or update is called without parameters.
    """

    def mask(params: optax.Params) -> Any:
        return jax.tree.map(lambda _: True, params) if decays is None else decays

    def init_fn(params: optax.Params) -> optax.EmptyState:
        _require_decay(factors, mask(params), params)
        return optax.EmptyState()

    def update_fn(
        updates: optax.Updates, state: optax.EmptyState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, optax.EmptyState]:
        if params is None:
            raise ValueError("weight decay adds a share of the parameters: call update with params")

        def add(update: jax.Array, param: jax.Array, decay: bool, factor: float) -> jax.Array:
            strength = weight_decay * factor
            return by_parts(lambda u, p: u + strength * p, update, param) if decay and strength else update

        return jax.tree.map(add, updates, params, mask(params), parameter_factors(factors, params)), state

    return optax.GradientTransformation(init_fn, update_fn)


def _require_decay(factors: Mapping[str, float], decays: Any, params: optax.Params) -> None:
    for path, factor in factors.items():
        elsewhere = jax.tree.leaves(parameter_factors({path: 0.0}, params))  # 0 where the path leads
        if factor and not any(d and not e for d, e in zip(jax.tree.leaves(decays), elsewhere, strict=True)):
            raise ValueError(f"nothing in {path!r} decays, so its factor {factor:g} multiplies nothing; leave it out")
