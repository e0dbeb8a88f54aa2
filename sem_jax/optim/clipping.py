"""Clipping by the global norm."""

import jax
import jax.numpy as jnp
import optax

from sem_jax.optim.parts import by_parts


def clip_by_global_norm(max_norm: float) -> optax.GradientTransformation:
    """`optax.clip_by_global_norm` (Pascanu et al., 2012, arXiv:1211.5063) for complex leaves: no complex division.

    Args:
      max_norm: largest 2-norm of the updates, with |z|² for a complex entry.

    Returns:
      A stateless transformation. On a real tree it gives the bits of optax.
    """

    def clip(updates: optax.Updates, params: optax.Params | None) -> optax.Updates:
        del params
        norm = optax.tree.norm(updates)

        def clip_leaf(update: jax.Array) -> jax.Array:
            scaled = by_parts(lambda part: part / norm.astype(part.dtype) * max_norm, update)
            return jnp.where(norm < max_norm, update, scaled)

        return jax.tree.map(clip_leaf, updates)

    return optax.stateless(clip)
