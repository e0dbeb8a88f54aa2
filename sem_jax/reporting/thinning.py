"""Curves of many points, drawn with few: what the eye could see of them stays."""

from __future__ import annotations

import itertools

import numpy as np


def thinned(x: np.ndarray, y: np.ndarray, columns: int) -> tuple[np.ndarray, np.ndarray]:
    """The points that decide the picture of a curve in so many columns of pixels.

    Of each column these are the lowest, the highest and the first gap; of the curve, its first and its last point. So
    no peak is lost, and none is made up. A curve of no more than two points a column stays whole.

    Args:
      x: [n], ascending.
      y: [n], NaN where there is a gap.
      columns: of equal width from the first to the last x.

    Returns:
      (x, y) of the points that stay, in their order.
    """
    if len(x) <= 2 * columns or x[0] == x[-1]:
        return x, y
    column = np.minimum((x - x[0]) / (x[-1] - x[0]) * columns, columns - 1).astype(int)
    starts = np.flatnonzero(np.diff(column, prepend=-1))
    kept = {0, len(x) - 1}
    for start, end in itertools.pairwise([*starts.tolist(), len(x)]):
        part = y[start:end]
        finite = np.flatnonzero(np.isfinite(part))
        if len(finite):
            values = part[finite]
            kept |= {start + int(finite[values.argmin()]), start + int(finite[values.argmax()])}
        if len(finite) < len(part):
            kept.add(start + int(np.argmin(np.isfinite(part))))
    indices = sorted(kept)
    return x[indices], y[indices]
