"""Which checkpoints stay: the newest, and the best."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import orbax.checkpoint as ocp

Choice = int | Literal["best"] | None  # of a checkpoint: a step, that of the lowest validation loss, or the newest


def best_step(losses: Mapping[int, float], steps: Sequence[int]) -> int | None:
    """The step of the lowest finite loss; None if there is none.

    >>> best_step({10: 2.0, 20: float("nan"), 30: 1.0}, [10, 20])
    10
    """
    finite = [step for step in steps if math.isfinite(losses.get(step, math.nan))]
    return min(finite, key=losses.__getitem__, default=None)


class NewestAndBest(ocp.checkpoint_managers.PreservationPolicy):
    """Preserves the newest checkpoints and the one of the lowest loss."""

    def __init__(self, keep: int, losses: Mapping[int, float]):
        self._keep, self._losses = keep, losses

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> Sequence[bool]:
        """Whether each checkpoint stays, as orbax asks."""
        steps = [checkpoint.step for checkpoint in checkpoints]
        kept = {*sorted(steps)[-self._keep :], best_step(self._losses, steps)}
        return [step in kept for step in steps]
