"""Draws the loss and the bits per byte of one or several runs against their steps, from their metrics.jsonl.

Command:  python benchmarks/plot_run.py --workdirs=runs/quickstart --plot=docs/quickstart.svg

Thin lines are the training loss, dots the validation loss; crosses on the axis are steps that the guard skipped. Needs
matplotlib (`pip install '.[plot]'`).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import app, flags
from figures import COLOURS

from sem_jax.training.metrics import FILE_NAME, read_metrics

_WORKDIRS = flags.DEFINE_list("workdirs", None, "Folders of the runs, separated by commas.", required=True)
_PLOT = flags.DEFINE_string("plot", None, "File of the picture, .svg or .png.", required=True)

PANELS = {"nats/token": "nll", "bits/byte": "bits_per_byte"}  # title, and name in metrics.jsonl


def series(lines: Sequence[dict[str, Any]], split: str, name: str) -> tuple[list[int], list[float]]:
    """Steps and values of one quantity."""
    chosen = [line for line in lines if line["split"] == split and name in line]
    return [line["step"] for line in chosen], [line[name] for line in chosen]


def draw(runs: dict[str, list[dict[str, Any]]], path: str) -> None:
    """One panel for the loss and one for the bits per byte, a colour for each run."""
    try:
        import matplotlib
    except ModuleNotFoundError:
        raise SystemExit("the picture needs matplotlib: pip install '.[plot]'") from None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    # The same numbers give the same file, small because text stays text.
    pyplot.rcParams.update({"svg.hashsalt": "run", "svg.fonttype": "none", "font.size": 9})
    figure, panels = pyplot.subplots(1, len(PANELS), figsize=(7.2, 2.8), sharex=True)
    for panel, (title, name) in zip(panels, PANELS.items(), strict=True):
        for i, (label, lines) in enumerate(runs.items()):
            colour = COLOURS[i % len(COLOURS)]
            panel.plot(*series(lines, "train", name), color=colour, linewidth=0.8, alpha=0.6, label=label)
            panel.plot(*series(lines, "validation", name), "o", color=colour, markersize=4)
            skipped, _ = series(lines, "skip", "step")
            panel.plot(skipped, [0.01] * len(skipped), "x", color=colour, transform=panel.get_xaxis_transform())
        panel.set_title(title, loc="left")
        panel.set_xlabel("step")
        panel.grid(which="major", color="#dddddd", linewidth=0.6)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].legend(frameon=False)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None} if path.endswith(".svg") else None)


def main(argv: list[str]) -> None:
    del argv
    folders = [Path(folder) for folder in _WORKDIRS.value]
    draw({folder.name: read_metrics(folder / FILE_NAME) for folder in folders}, _PLOT.value)


if __name__ == "__main__":
    app.run(main)
