"""Groups of parameters, chosen by path: a factor on the updates of each."""

import difflib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from sem_jax.optim.parts import by_parts


def scale_by_group(factors: Mapping[str, float]) -> optax.GradientTransformation:
    """Multiplies the updates of each group of parameters by its factor.

    Behind an optimizer it scales the group's learning rate; in front of Adam it would do nothing, for Adam divides by
    the size of its input. Updates without a factor pass as they are, those with a factor of 0 become exactly 0,
    whatever they were. It knows no noise: see `group_rates`.

    Args:
      factors: by path, see `parameter_factors`.

    Returns:
      A stateless transformation for complex and real leaves of any shape.

    Raises:
      ValueError: init or update got a tree in which a path names nothing.
    """

    def scale(factor: float, update: jax.Array) -> jax.Array:
        if factor == 1:
            return update
        return by_parts(lambda part: factor * part, update) if factor else jnp.zeros_like(update)

    def init_fn(params: optax.Params) -> optax.EmptyState:
        parameter_factors(factors, params)
        return optax.EmptyState()

    def update_fn(
        updates: optax.Updates, state: optax.EmptyState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, optax.EmptyState]:
        del params
        return jax.tree.map(scale, parameter_factors(factors, updates), updates), state

    return optax.GradientTransformation(init_fn, update_fn)


def group_rates(factors: Mapping[str, float], learning_rate: jax.typing.ArrayLike, params: optax.Params) -> Any:
    """The learning rate of each parameter, as `langevin_noise` takes it.

    Args:
      factors: by path, see `parameter_factors`.
      learning_rate: scalar, of a parameter whose factor is 1.
      params: any tree with the structure of the parameters.

    Returns:
      A tree of scalars. A factor of 0 gives Python's 0.0, so that it is known before anything is compiled.

    Raises:
      ValueError: a path names nothing.
    """

    def rate(factor: float) -> jax.typing.ArrayLike:
        if factor == 1:
            return learning_rate
        return factor * learning_rate if factor else 0.0

    return jax.tree.map(rate, parameter_factors(factors, params))


def parameter_factors(factors: Mapping[str, float], params: optax.Params) -> Any:
    """The factor of each parameter: that of the longest path that leads to it, 1 where none does.

    Args:
      factors: by path, the name of a parameter as `leaf_names` gives it or its first keys: "propagators" leads to
        "propagators/alpha" and to "propagators/edge_weights/0".
      params: any tree with the structure of the parameters.

    Returns:
      A tree of floats.

    Raises:
      ValueError: a path leads to no parameter; the message has the names that come closest.
    """
    unused = set(factors)

    def factor(path: tuple[Any, ...], leaf: Any) -> float:
        leading = [name for name in _beginnings(path) if name in factors]
        unused.difference_update(leading)
        return factors[leading[-1]] if leading else 1.0

    found = jax.tree.map_with_path(factor, params)
    if unused:
        raise ValueError(_names_nothing(min(unused), params))
    return found


def _names_nothing(name: str, params: optax.Params) -> str:
    paths = (path for path, _ in jax.tree_util.tree_leaves_with_path(params))
    known = list(dict.fromkeys(beginning for path in paths for beginning in _beginnings(path)))
    close = difflib.get_close_matches(name, known, cutoff=0.4) or [path for path in known if "/" not in path]
    return f"there is no parameter and no group {name!r}; the closest are {', '.join(close)}"


def _beginnings(path: tuple[Any, ...]) -> list[str]:
    return [jax.tree_util.keystr(path[: i + 1], simple=True, separator="/") for i in range(len(path))]
