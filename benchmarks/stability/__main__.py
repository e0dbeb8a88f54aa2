"""Which of the causes that the seed report named breaks a training run? Each alone, then all together.

Command:  python benchmarks/stability [--plot=docs/stability.svg] [--json=FILE] [--load=FILE]
          [--steps=600 --seeds=3 --dim=32 --layers=8 --only=SUBSTRING]

Trains a small model on the bytes of the Python standard library (batches of 4 windows of 32) under the fixed recipe:
lr 1.2e-3 after a warm-up over the first tenth, T = 1e-5 with floor and cap, CG on I + h²H² with 8 iterations, implicit
gradient, float32, clipping at 1, weight decay 0.1; and under that recipe with one setting changed. Bad updates are
applied, but where recovery is named. All causes share initial parameters and batches, a seed for each run.

  CG on I + ihH       plain CG on the matrix that is not Hermitian, forward and in the implicit gradient
  warm start          each solve begins at the answer to the previous batch, at the same token of the same layer
  one-step gradient   exact solve x0, detached; the gradient goes through x0 + (b − A·x0) alone
  unfloored noise     sqrt(2Tη)/(sqrt(denom) + 1e-8), denom = sqrt(v̂) + 1e-8, on every real component
  bf16                parameters, and the result of each part (and their cotangents), rounded to bfloat16 as mixed
                      precision would; master weights, solve, likelihood and optimizer float32
  old settings        CG on I + ihH with 3 iterations, one-step gradient, unfloored noise at T = 1e-4
  new settings        the report's remedy: the same with 8 iterations and T = 1e-5
  recovery            a step with a loss, gradient or new parameter that is not finite is skipped, as the report advised

The original had the old settings with the warm start.

Prints a markdown table, the most harmful setting first: by the share of runs that become non-finite, then by the step
where they do, then by the loss of the last 100 steps. --load=FILE prints and draws the results that --json=FILE saved.
"""

from __future__ import annotations

import json
import math
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from absl import app, flags
from causes import CAUSES, FIXED
from runs import CHUNK, POINT, Study, summary

from sem_jax.training.host import single_threaded_lapack

_STEPS = flags.DEFINE_integer("steps", 600, f"Training steps, a multiple of {CHUNK}.")
_SEEDS = flags.DEFINE_integer("seeds", 3, "Runs of each setting.")
_DIM = flags.DEFINE_integer("dim", 32, "Channels.")
_LAYERS = flags.DEFINE_integer("layers", 8, "Mixers, and as many propagators.")
_ONLY = flags.DEFINE_string("only", "", "Train settings whose name contains this, and the fixed recipe.")
_PLOT = flags.DEFINE_string("plot", "", "File for the figure; its suffix decides the format. Needs matplotlib.")
_JSON = flags.DEFINE_string("json", "", "File for the results.")
_LOAD = flags.DEFINE_string("load", "", "File of results to print and draw instead of training.")

Results = dict[str, list[dict[str, Any]]]  # by setting, the summary of each seed

# Columns of the figure: (setting, label, line) with colours of Okabe and Ito, distinct to the colour-blind.
_LINES = (("#D55E00", "-"), ("#0072B2", "-."), ("#E69F00", "--"), ("#009E73", ":"))
PANELS = {
    "warm start": (
        ("old settings, warm start", "old settings: the original"),
        ("the report's new settings, warm start", "the report's new settings"),
        ("CG on I + ihH, 3 iterations, warm start", "CG on I + ihH, 3 iterations"),
        ("warm start", "CG on I + h²H²"),
    ),
    "old and new settings, cold start": (
        ("old settings", "old"),
        ("the report's new settings", "new"),
        ("old settings, lr 6e-4", "old, lr 6e-4"),
        ("the report's new settings, lr 6e-4", "new, lr 6e-4"),
    ),
    "solver and gradient, cold start": (
        ("CG on I + ihH, 20 iterations", "CG on I + ihH, 20 iterations"),
        ("CG on I + ihH, 8 iterations", "CG on I + ihH, 8 iterations"),
        ("CG on I + ihH, 3 iterations", "CG on I + ihH, 3 iterations"),
        ("one-step gradient", "one-step gradient"),
    ),
    "noise, precision, learning rate": (
        ("unfloored noise, T = 1e-4", "unfloored noise, T = 1e-4"),
        ("unfloored noise, T = 1e-5", "unfloored noise, T = 1e-5"),
        ("bf16", "bf16"),
        ("lr 6e-4", "lr 6e-4"),
    ),
}
ROWS = {"nll": "nats a byte", "h_lambda": "hλ, worst layer", "residual": "worst residual of the solve"}


def train_all() -> Results:
    """Every setting; progress on stderr."""
    results = {}
    with single_threaded_lapack():
        study = Study(_STEPS.value, _SEEDS.value, _DIM.value, _LAYERS.value)
        for cause in CAUSES:
            if _ONLY.value not in cause.name and cause != FIXED:
                continue
            start = time.perf_counter()
            results[cause.name] = [summary(run, study.vocab_size) for run in study.train(cause)]
            print(f"{cause.name}: {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
    return results


def harm(runs: list[dict[str, Any]]) -> tuple[float, float, float]:
    """Grows with the damage: share of non-finite runs, minus the step where they broke, loss at the end."""
    bad = [run["first_bad_step"] for run in runs if run["first_bad_step"]]
    return len(bad) / len(runs), -float(np.median(bad)) if bad else -math.inf, mean_final(runs)


def mean_final(runs: list[dict[str, Any]]) -> float:
    """Nats a byte in the last 100 steps, mean of the seeds that stayed finite; infinite where none did."""
    finals = [run["final_nll"] for run in runs if run["final_nll"] is not None]
    return float(np.mean(finals)) if finals else math.inf


def spread(values: list[float | None], form: str) -> str:
    """The range of the finite ones, and "inf" where one is not finite."""
    finite = sorted(value for value in values if value is not None)
    texts = list(dict.fromkeys(format(value, form) for value in finite[:1] + finite[-1:]))
    return "–".join(texts[: 1 if len(finite) < len(values) else 2] + ["inf"] * (len(finite) < len(values)))


def row(name: str, runs: list[dict[str, Any]], fixed: float) -> list[str]:
    def steps(key: str) -> str:
        found = [str(run[key]) for run in runs if run[key]]
        return ", ".join(found) if found else "none"

    cosines = np.array([run["edge_cosine"] for run in runs], float)  # null becomes NaN
    finals = [run["final_nll"] for run in runs]
    return [
        name,
        steps("first_bad_step"),
        spread([run["bad_steps"] for run in runs], "d"),
        steps("divergence_step"),
        spread(finals, ".3f"),
        f"{mean_final(runs) - fixed:+.3f}",
        f"{runs[0]['h_lambda'][0]:.2f} → {spread([run['h_lambda'][-1] for run in runs], '.3g')}",
        spread([run["edge_rms"][-1] for run in runs], ".2g"),
        spread([run["edge_max"][-1] for run in runs], ".2g"),
        spread([run["worst_residual"] for run in runs], ".1e"),
        spread([run["worst_norm_error"] for run in runs], ".1e"),
        f"{np.nanmedian(cosines[:, 0]):.2f}; {np.nanmedian(cosines):.2f}",
    ]


HEADINGS = (
    "setting",
    "first non-finite step",
    "non-finite steps",
    "diverged from step",
    "nats a byte, last 100 steps",
    "against fixed",
    "hλ",
    "edge weights, rms",
    "largest",
    "worst residual",
    "worst norm error",
    "cosine of the edge gradient, first; median",
)


def print_table(results: Results) -> None:
    """Markdown, most harmful first; a range is that over seeds."""
    fixed = mean_final(results[FIXED.name])
    print("| " + " | ".join(HEADINGS) + " |")
    print("|---" * len(HEADINGS) + "|")
    for name in sorted(results, key=lambda name: harm(results[name]), reverse=True):
        print("| " + " | ".join(row(name, results[name], fixed)) + " |")


def pyplot():
    """matplotlib, drawing into files only."""
    try:
        import matplotlib
    except ModuleNotFoundError:
        raise SystemExit("--plot needs matplotlib: pip install '.[plot]'") from None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    # The same numbers give the same file, small because text stays text.
    pyplot.rcParams.update({"svg.hashsalt": "stability", "svg.fonttype": "none", "font.size": 9, "axes.titlesize": 9})
    return pyplot


def curves(runs: list[dict[str, Any]], key: str) -> tuple[np.ndarray, ...]:
    """(steps, least, median and largest of the seeds); a stretch ends where one seed is no longer finite."""
    values = np.array([[math.nan if v is None else v for v in run[key]] for run in runs])
    count = np.arange(values.shape[1])
    steps = CHUNK * count if key == "h_lambda" else POINT * (count + 0.5)
    return steps, values.min(axis=0), np.median(values, axis=0), values.max(axis=0)


def draw(panel: Any, runs: list[dict[str, Any]], key: str, label: str, colour: str, dashes: str) -> None:
    """The median of the seeds, their range as a band, and a cross where the first seed breaks."""
    steps, low, middle, high = curves(runs, key)
    panel.plot(steps, middle, color=colour, linestyle=dashes, linewidth=1.5, label=label)
    panel.fill_between(steps, low, high, color=colour, alpha=0.2, linewidth=0)
    known = np.flatnonzero(np.isfinite(middle))
    if len(known) < len(middle) and len(known):
        panel.plot(steps[known[-1]], middle[known[-1]], "x", color=colour, markersize=7, markeredgewidth=2)


def plot(plt: Any, results: Results, path: str) -> None:
    """A column a group of settings, the fixed recipe in grey in each."""
    figure, axes = plt.subplots(len(ROWS), len(PANELS), figsize=(12, 8.2), sharex=True, sharey="row")
    for column, (title, settings) in enumerate(PANELS.items()):
        for panel, (key, label) in zip(axes[:, column], ROWS.items(), strict=True):
            draw(panel, results[FIXED.name], key, FIXED.name, "#777777", "-")
            for (name, short), line in zip(settings, _LINES, strict=True):
                if name in results:
                    draw(panel, results[name], key, short, *line)
            if key == "residual":
                panel.set_yscale("log")
            if not column:
                panel.set_ylabel(label)
            panel.grid(which="major", color="#dddddd", linewidth=0.6)
            panel.set_axisbelow(True)
            panel.spines[["top", "right"]].set_visible(False)
        axes[0, column].set_title(title, loc="left", pad=80)
        axes[0, column].legend(loc="lower left", bbox_to_anchor=(-0.02, 1), frameon=False, borderpad=0, fontsize=9)
        axes[-1, column].set_xlabel("step")
    figure.text(0.99, 0.005, "band: range over seeds; ×: a seed is no longer finite", ha="right", fontsize=8)
    figure.tight_layout(rect=(0, 0.015, 1, 1))
    figure.savefig(path, metadata={"Date": None} if path.endswith(".svg") else None)


def main(argv: list[str]) -> None:
    del argv
    plt = pyplot() if _PLOT.value else None
    results = json.loads(Path(_LOAD.value).read_text()) if _LOAD.value else train_all()
    print_table(results)
    if plt:
        plot(plt, results, _PLOT.value)
    if _JSON.value:
        Path(_JSON.value).write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    app.run(main)
