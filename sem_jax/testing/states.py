"""States that a run must reach."""

from __future__ import annotations

import jax.numpy as jnp

from sem_jax.config import Config
from sem_jax.optim import Reason
from sem_jax.training.state import TrainState


def skip_step(config: Config, state: TrainState, reason: Reason, leaf: int = -1) -> TrainState:
    """The state after a step that was not taken: counters and LR scale move on, and nothing is computed.

    A run in which the guard refuses a step as not finite must go on from here to the bit.

    Args:
      config: the experiment.
      state: before the step; it is not changed.
      reason: the cause for which it was not taken.
      leaf: index in `sem_jax.optim.leaf_names` of the first bad leaf, -1 for none.
    """
    guard, optimizer = state.opt_state, config.optimizer
    backed_off = jnp.maximum(optimizer.guard_backoff * guard.lr_scale, optimizer.guard_min_scale)
    guard = guard._replace(
        lr_scale=backed_off,
        skipped=guard.skipped + 1,
        consecutive=guard.consecutive + 1,
        clean=jnp.zeros_like(guard.clean),
        reason=jnp.full_like(guard.reason, int(reason)),
        leaf=jnp.full_like(guard.leaf, leaf),
    )
    return state.replace(step=state.step + 1, opt_state=guard)
