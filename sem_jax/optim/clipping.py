"""Clipping by the global norm."""

import jax.numpy as jnp
import optax

from sem_jax.optim.parts import by_parts


def clip_by_global_norm(max_norm: float) -> optax.GradientTransformation:
    """Clipping (Pascanu et al., 2012, arXiv:1211.5063) by one factor, min(1, max_norm / norm), for all updates.

    `optax.clip_by_global_norm` divides every entry by the norm. XLA computes a division only once, and so stores the
    clipped gradients before Adam reads them; a product it repeats wherever Adam needs it.

    Args:
      max_norm: largest 2-norm of the updates, with |z|² for a complex entry.

    Returns:
      A stateless transformation.
    """

    def clip(updates: optax.Updates, params: optax.Params | None) -> optax.Updates:
        del params
        norm = optax.tree.norm(updates)
        factor = jnp.where(norm < max_norm, 1.0, max_norm / norm)
        return by_parts(lambda update: update * factor.astype(update.dtype), updates)

    return optax.stateless(clip)
