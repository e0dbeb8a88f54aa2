"""The original's buffers, which follow from fewer numbers here: rotation phases and symmetric edge lists."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from sem_jax.modules.encoder import rotation_frequency

# Phases may differ from position·frequency by this many roundings of the type in which they are stored.
_PHASE_ROUNDINGS = 8


def frequency_of(phase: np.ndarray) -> np.ndarray | None:
    """The frequencies [D] that give back the phase [S, D] to the bit, or as exactly as its type allows; None: none."""
    with np.errstate(over="ignore"):  # infinite phases are no product
        exact = phase.astype(np.float32)
    if len(exact) > 1 and np.array_equal(phase_of(exact[1], len(exact)), exact):
        return exact[1]
    num_positions, dim = phase.shape
    frequency = rotation_frequency(dim)
    expected = np.arange(num_positions)[:, None] * frequency
    rounding = max(float(jnp.finfo(phase.dtype).eps), float(np.finfo(np.float32).eps))
    close = np.abs(exact - expected) <= _PHASE_ROUNDINGS * rounding * expected
    return frequency.astype(np.float32) if np.all(close) else None


def phase_of(frequency: np.ndarray, num_positions: int) -> np.ndarray:
    """[S, D] of frequencies [D]; the original, too, multiplies in their own precision."""
    with np.errstate(invalid="ignore"):  # 0·∞ in a file that is refused for it
        return np.arange(num_positions, dtype=frequency.dtype)[:, None] * frequency


def both_directions(edges: np.ndarray) -> np.ndarray:
    """`_sparse_idx_sym` [2, 2E] of `edge_indices` [2, E]: every (i, j), then every (j, i)."""
    return np.concatenate([edges, edges[::-1]], axis=1)
