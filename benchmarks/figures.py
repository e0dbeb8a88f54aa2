"""Curves of the timing scripts, drawn into files; needs matplotlib (`pip install '.[plot]'`)."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

# Of Okabe and Ito, distinct to the colour-blind, and grey.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#000000", "#56B4E9", "#F0E442", "#999999")


def save_curves(
    path: str, lines: Mapping[str, tuple[Sequence[float], Sequence[float]]], x: str, y: str, marker: str = "o"
) -> None:
    """One line a label, both axes logarithmic."""
    try:
        import matplotlib
    except ModuleNotFoundError:
        raise SystemExit("--plot needs matplotlib: pip install '.[plot]'") from None
    matplotlib.use("Agg")
    from matplotlib import pyplot, ticker

    pyplot.rcParams.update({"svg.hashsalt": path, "svg.fonttype": "none", "font.size": 9})
    figure, axes = pyplot.subplots(figsize=(5.2, 3.4))
    styles = itertools.cycle(itertools.product(("-", "--"), COLOURS))
    for (dashes, colour), (label, (sizes, values)) in zip(styles, lines.items(), strict=False):
        axes.plot(sizes, values, dashes, marker=marker, color=colour, markersize=3.5, linewidth=1.4, label=label)
    axes.set(xscale="log", yscale="log", xlabel=x, ylabel=y)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(ticker.ScalarFormatter())
        axis.set_minor_formatter(ticker.LogFormatter(minor_thresholds=(1, 0.4)))  # plain, where the range is short
    axes.grid(which="major", color="#dddddd", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=6.5, labelspacing=0.3)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None} if path.endswith(".svg") else None)
