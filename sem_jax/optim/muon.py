"""Muon: the matrices of the layers move along their orthogonalised momentum.

Where a step has few tokens for so many parameters, the iteration costs as much as the gradient. So its complex products
are made of real ones here: in the native ones of `optax.contrib.orthogonalize_via_newton_schulz` it takes a CPU twice
as long.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array
from optax import contrib

from sem_jax.core.complex_ops import hermitian_parts, product_of_parts

# The root mean square of an entry of Adam's updates is about this; a matrix whose update has the same takes the same
# learning rate and weight decay (Liu et al., 2025, arXiv:2502.16982, section 2.2).
UPDATE_RMS = 0.2
STEPS, QUINTIC = 5, (3.4445, -4.7750, 2.0315)  # of the iteration (Jordan et al., 2024)


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
    # Without steps optax keeps the momentum and divides each matrix of it by its norm.
    return optax.chain(
        contrib.scale_by_muon(beta=momentum, ns_steps=0, weight_dimension_numbers=_axes),
        optax.stateless(lambda updates, params: jax.tree.map(_orthogonalised, updates)),
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


def _orthogonalised(momentum: Array) -> Array:
    """UVᴴ of each matrix M = UΣVᴴ of norm 1 of a stack [L, O, I], about, and scaled to `UPDATE_RMS`.

    X ← a·X + (b·A + c·A²)·X with A = XXᴴ keeps the singular vectors, and takes singular values between 0 and 1 near 1.
    """
    tall = momentum.shape[1] > momentum.shape[2]
    wide = momentum.mT if tall else momentum
    x = [wide.real, wide.imag] if jnp.iscomplexobj(wide) else [wide]
    a, b, c = QUINTIC
    for _ in range(STEPS):
        square = _square(x)
        factor = [b * once + c * twice for once, twice in zip(square, _square(square), strict=True)]
        x = [a * old + new for old, new in zip(x, _product(factor, x), strict=True)]
    # min(O, I) singular values of 1 make a mean square of 1 / max(O, I).
    x = [UPDATE_RMS * wide.shape[2] ** 0.5 * part for part in x]
    update = jax.lax.complex(*x) if len(x) == 2 else x[0]
    return update.mT if tall else update


def _product(x: Sequence[Array], y: Sequence[Array]) -> Sequence[Array]:
    """The parts of XY; each factor is its real and its imaginary part, or a real matrix alone."""
    return product_of_parts(x, y, jnp.matmul) if len(x) == 2 else [x[0] @ y[0]]


def _square(x: Sequence[Array]) -> Sequence[Array]:
    """The parts of XXᴴ by one real product.

    For X = R + iJ it is S + iK with S = RRᵀ + JJᵀ and K = JRᵀ − RJᵀ, and S + K = [R, J]·[R − J, R + J]ᵀ comes apart
    into both, in half the arithmetic of a complex product.
    """
    if len(x) == 1:
        return [x[0] @ x[0].mT]
    real, imag = x
    both = jnp.concatenate([real, imag], axis=-1) @ jnp.concatenate([real - imag, real + imag], axis=-1).mT
    return hermitian_parts(both)
