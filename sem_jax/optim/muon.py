"""Muon: the matrices of the layers move along their orthogonalised momentum."""

from typing import Any

import jax
import optax
from optax import contrib

from sem_jax.optim.parts import by_parts

# The root mean square of an entry of Adam's updates is about this; a matrix whose update has the same takes the same
# learning rate and weight decay (Liu et al., 2025, arXiv:2502.16982, section 2.2).
UPDATE_RMS = 0.2


def scale_by_muon(momentum: float = 0.95) -> optax.GradientTransformation:
    """Muon (Jordan et al., 2024) for stacked matrices [L, O, I], each with an update of the scale of Adam's.

    The momentum M of a matrix becomes the nearest matrix with orthonormal rows or columns, UVᴴ of M = UΣVᴴ, by five
    steps of a Newton-Schulz iteration, so that a direction that most gradients share does not drown the others. For a
    complex matrix UVᴴ is the unitary polar factor: a rotation of the gradient's phase turns the update by it, as with
    `scale_by_complex_adam`.

    Args:
      momentum: decay of the first moment a step; Nesterov's form.

    Returns:
      A transformation whose state holds `optax.contrib.MuonState`; all leaves must have three axes.
    """
    return optax.chain(
        contrib.scale_by_muon(beta=momentum, weight_dimension_numbers=_axes),
        optax.stateless(lambda updates, params: by_parts(_to_one_scale, updates)),
    )


def matrices_of_layers(params: optax.Params, decays: Any | None) -> Any:
    """Which parameters Muon moves: stacks [L, O, I] of matrices that weight decay touches; a tree of bools.

    Embedding and readout have an axis that counts tokens, not directions, and stay with Adam.

    Args:
      params: the parameters, or abstract arrays.
      decays: tree of bools, as `ModelParts.decays` gives it; None: all.
    """
    decays = jax.tree.map(lambda _: True, params) if decays is None else decays
    return jax.tree.map(lambda param, decay: bool(decay) and param.ndim == 3, params, decays)


def _axes(updates: optax.Updates) -> Any:
    return jax.tree.map(lambda _: contrib.MuonDimensionNumbers(reduction_axis=2, output_axis=1), updates)


def _to_one_scale(update: jax.Array) -> jax.Array:
    # min(O, I) singular values of 1 make a mean square of 1 / max(O, I).
    return UPDATE_RMS * max(update.shape[1:]) ** 0.5 * update
