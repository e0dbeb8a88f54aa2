"""The learning rate as a function of the training step."""

import optax


def warmup_stable_decay(
    learning_rate: float, warmup_steps: int, decay_steps: int, max_steps: int, lr_min_ratio: float
) -> optax.Schedule:
    """Linear warm-up from 0, a plateau, and a cosine over the last `decay_steps` (Hu et al., 2024, arXiv:2404.06395).

    Args:
      learning_rate: the plateau.
      warmup_steps: steps from 0 to the plateau; 0 starts on it.
      decay_steps: steps from the plateau to `learning_rate * lr_min_ratio`; the decay begins at step
        `max_steps - decay_steps`. 0 stays on the plateau.
      max_steps: length of the run. From there on the rate is constant.
      lr_min_ratio: last learning rate in units of the plateau.

    Returns:
      A function from the step, a scalar integer counted from 0, to the learning rate of that step.

    Raises:
      ValueError: warm-up and decay do not fit into the run.
    """
    if min(warmup_steps, decay_steps) < 0 or warmup_steps + decay_steps > max_steps:
        raise ValueError(
            f"warmup_steps = {warmup_steps} and decay_steps = {decay_steps} must not be negative "
            f"and must fit in max_steps = {max_steps}"
        )
    plateau = optax.constant_schedule(learning_rate)
    warmup = optax.linear_schedule(0.0, learning_rate, warmup_steps) if warmup_steps else plateau
    decay = optax.cosine_decay_schedule(learning_rate, decay_steps, alpha=lr_min_ratio) if decay_steps else plateau
    return optax.join_schedules([warmup, plateau, decay], [warmup_steps, max_steps - decay_steps])


def warmup_cosine(learning_rate: float, warmup_steps: int, max_steps: int, lr_min_ratio: float) -> optax.Schedule:
    """Linear warm-up from 0, then half a cosine to the end of the run (Loshchilov & Hutter, 2017, arXiv:1608.03983).

    η(t) = η (r + (1 − r) (1 + cos πu) / 2), u = (t − warmup_steps) / (max_steps − warmup_steps): equation 5 of the
    paper without restarts, with r = `lr_min_ratio`.

    Args:
      learning_rate: η, the rate at the end of the warm-up.
      warmup_steps: steps from 0 to η; 0 starts there.
      max_steps: length of the run. From there on the rate is constant.
      lr_min_ratio: last learning rate in units of η.

    Returns:
      A function from the step, a scalar integer counted from 0, to the learning rate of that step.

    Raises:
      ValueError: the warm-up leaves no step for the cosine.
    """
    if not 0 <= warmup_steps < max_steps:
        raise ValueError(
            f"warmup_steps = {warmup_steps} must not be negative and must be below max_steps = {max_steps}"
        )
    cosine = optax.cosine_decay_schedule(learning_rate, max_steps - warmup_steps, alpha=lr_min_ratio)
    if not warmup_steps:
        return cosine
    return optax.join_schedules([optax.linear_schedule(0.0, learning_rate, warmup_steps), cosine], [warmup_steps])
