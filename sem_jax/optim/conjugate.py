"""The gradient convention: from what `jax.grad` returns to the direction of steepest ascent."""

import jax
import jax.numpy as jnp
import optax


def conjugate_gradients() -> optax.GradientTransformation:
    """Conjugates complex gradients, so that every later stage may subtract what it is given.

    For a real loss f of z = x + iy, `jax.grad` returns ∂f/∂x − i ∂f/∂y, while f grows fastest along
    ∂f/∂x + i ∂f/∂y = 2 ∂f/∂z̄ (Kreutz-Delgado, 2009, arXiv:0906.4835, section 4.2). Apply it once, first in a chain.

    Returns:
      A stateless transformation: complex leaves of any shape are conjugated, real leaves pass unchanged.
    """
    return optax.stateless(lambda updates, params: jax.tree.map(jnp.conj, updates))
