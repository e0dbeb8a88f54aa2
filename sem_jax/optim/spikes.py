"""Spikes: a loss or a gradient that is finite, and far above all that came before."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

# σ of a normal distribution in units of its median absolute deviation (Hampel, 1974).
_SIGMA = 1.4826
# Least σ, as a share: where the last steps hardly differ, a change of one part in a hundred is no spike.
_LEAST = 0.01


class SpikeState(NamedTuple):
    """What `judge_spike` compares with."""

    window: jax.Array  #: float32 [steps, 2], a ring of loss and log of the gradient norm of steps that were taken
    held: jax.Array  #: int32, steps taken in since the window was empty
    streak: jax.Array  #: int32, spikes in a row up to the last step


def init_spikes(steps: int) -> SpikeState:
    """An empty window of so many steps."""
    zero = jnp.zeros([], jnp.int32)
    return SpikeState(jnp.zeros([steps, 2], jnp.float32), zero, zero)


def judge_spike(
    state: SpikeState, loss: jax.Array, grad_norm: jax.Array, zscore: float, patience: int
) -> tuple[jax.Array, SpikeState]:
    """Whether a step is a spike, and the state after it.

    It is one if loss or log gradient norm exceed their median over a full window by `zscore` robust standard
    deviations, 1.4826 times the median absolute deviation. A spike does not enter the window. More than `patience` of
    them in a row are no spikes but a new level: the step is taken, and a new window begins with it.

    Args:
      state: before the step.
      loss: scalar, finite.
      grad_norm: scalar, finite.
      zscore: limit in standard deviations.
      patience: spikes in a row that are refused.

    Returns:
      A scalar bool, and the state to keep if nothing else was wrong with the step.
    """
    value = jnp.stack([loss, jnp.log(grad_norm + jnp.finfo(jnp.float32).tiny)]).astype(jnp.float32)
    median = jnp.median(state.window, axis=0)
    sigma = _SIGMA * jnp.median(jnp.abs(state.window - median), axis=0)
    least = _LEAST * jnp.stack([jnp.abs(median[0]), jnp.ones([])])
    steps = len(state.window)
    far = (state.held >= steps) & jnp.any(value - median > zscore * jnp.maximum(sigma, least))
    spike = far & (state.streak < patience)
    held = jnp.where(far, 0, state.held)
    taken = SpikeState(state.window.at[held % steps].set(value), held + 1, jnp.zeros_like(state.streak))
    refused = state._replace(streak=state.streak + 1)
    return spike, jax.tree.map(lambda a, b: jnp.where(spike, a, b), refused, taken)
