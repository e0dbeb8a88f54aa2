"""How fast does each solver of the Cayley step converge? The PyTorch original's CG against those of sem_jax.

Command:  python benchmarks/cg_convergence.py [--plot=docs/cg_convergence.svg] [--json=FILE]
          [--dim=256 --sparsity=8 --dt=0.1 --tokens=64 --noise=3.5]

Solves the step of one propagator layer for random wave functions in float32, with 1 to 20 iterations from a cold start
and no tolerance to stop at. Once with the weights of a fresh layer (edge weights softplus(0), scales equal) and once
with Gaussian noise of standard deviation --noise on them before the softplus: what one step of the original's Langevin
noise does to a weight that has seen no gradient. An iteration is two products with H for CG on the normal equations,
one for the others; the dense solver has none. Prints the residual of the Cayley equation relative to ‖ψ‖ and the norm
error |‖x‖/‖ψ‖ − 1|, both of the float32 answers and evaluated in float64; the figure shows the worst wave function.
"""

import functools
import json
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from absl import app, flags

from sem_jax.config import PropagatorConfig
from sem_jax.core.cayley import SolverOptions, cayley_step
from sem_jax.core.complex_ops import complex_normal
from sem_jax.core.graph import DenseHamiltonian, combine_scales, small_world_edges, to_dense

_DIM = flags.DEFINE_integer("dim", 256, "Channels.")
_SPARSITY = flags.DEFINE_integer("sparsity", 8, "Neighbours a node in the finest graph.")
_DT = flags.DEFINE_float("dt", 0.1, "Time step.")
_TOKENS = flags.DEFINE_integer("tokens", 64, "Random wave functions to solve for.")
_NOISE = flags.DEFINE_float("noise", 3.5, "Standard deviation of the noise on the edge weights, before softplus.")
_JSON = flags.DEFINE_string("json", "", "File for the same numbers.")
_PLOT = flags.DEFINE_string("plot", "", "File for the figure; its suffix decides the format. Needs matplotlib.")

ITERATIONS = range(1, 21)
PRINTED = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20)
CLAIMS = {3: 0.70, 8: 0.95}  # the report: share "converged" after so many iterations
# Solver: (label, colour, marker). Colours of Okabe and Ito, distinct to the colour-blind.
STYLES = {
    "cg_on_cayley": ("the original's CG, on I + ihH", "#D55E00", "s"),
    "cg": ("CG on the normal equations", "#0072B2", "o"),
    "chebyshev": ("Chebyshev", "#009E73", "^"),
    "dense": ("dense", "#000000", ""),
}


class Accuracy(NamedTuple):
    """Of one solver after so many iterations."""

    worst_residual: float
    median_residual: float
    norm_error: float  # of the worst token


def layer_hamiltonian(noise: float) -> DenseHamiltonian:
    """H of a propagator layer with noise on its edge weights."""
    rewire, rng = PropagatorConfig().rewire_probability, np.random.default_rng(0)
    edges = [small_world_edges(_DIM.value, _SPARSITY.value * 2**k, rewire, seed=k) for k in range(3)]
    weights = [noise * rng.normal(size=scale.shape[1]).astype(np.float32) for scale in edges]
    return to_dense(combine_scales(edges, weights, np.zeros(3, np.float32)), _DIM.value)


@functools.cache
def solver_step(solver: str, iterations: int):
    options = SolverOptions(solver, max_iter=iterations, tol=0.0, degree=iterations)
    return jax.jit(lambda hamiltonian, psi, h: cayley_step(hamiltonian, psi, h, options)[0])


def measure(hamiltonian: DenseHamiltonian, psi: jax.Array, solver: str, iterations: int) -> Accuracy:
    h = _DT.value / 2
    x = np.asarray(solver_step(solver, iterations)(hamiltonian, psi, h), np.complex128)
    wave, matrix = np.asarray(psi, np.complex128), np.asarray(hamiltonian.matrix, np.float64)
    size = np.linalg.norm(wave, axis=-1)
    residual = np.linalg.norm(x - wave + 1j * h * (x + wave) @ matrix, axis=-1) / size
    drift = np.abs(np.linalg.norm(x, axis=-1) / size - 1)
    return Accuracy(float(residual.max()), float(np.median(residual)), float(drift.max()))


def measure_all(hamiltonian: DenseHamiltonian, psi: jax.Array) -> dict[str, list[Accuracy]]:
    """Of every solver after each of ITERATIONS; the dense one repeats its only answer."""
    dense = measure(hamiltonian, psi, "dense", 1)
    return {
        solver: [dense if solver == "dense" else measure(hamiltonian, psi, solver, k) for k in ITERATIONS]
        for solver in STYLES
    }


def print_table(title: str, results: dict[str, list[Accuracy]]) -> None:
    """Markdown: worst residual (median residual), norm error."""
    print(f"\n{title}; each cell: worst residual (median), norm error\n")
    print("| iterations | " + " | ".join(label for label, _, _ in STYLES.values()) + " |")
    print("|---|" + "---|" * len(STYLES))
    for k in PRINTED:
        cells = (results[solver][k - 1] for solver in STYLES)
        print(f"| {k} | " + " | ".join(f"{a:.1e} ({b:.1e}), {c:.1e}" for a, b, c in cells) + " |")


def pyplot():
    """matplotlib, drawing into files only."""
    try:
        import matplotlib
    except ModuleNotFoundError:
        raise SystemExit("--plot needs matplotlib: pip install '.[plot]'") from None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    # The same numbers give the same file, small because text stays text.
    pyplot.rcParams.update(
        {"svg.hashsalt": "cg_convergence", "svg.fonttype": "none", "font.size": 9, "axes.titlesize": 9}
    )
    return pyplot


def plot(plt, cases: dict[str, dict[str, list[Accuracy]]], path: str) -> None:
    """One row of panels a case: residual and norm error. The report's claims stand with the first, its setting."""
    figure, rows = plt.subplots(
        len(cases), 2, figsize=(7.2, 2.3 * len(cases) + 0.7), sharex=True, sharey=True, squeeze=False
    )
    for panels, (title, results) in zip(rows, cases.items(), strict=True):
        for solver, (label, colour, marker) in STYLES.items():
            worst, _, drift = zip(*results[solver], strict=True)
            style = {"color": colour, "marker": marker, "markersize": 3.5, "linewidth": 1.4, "label": label}
            style["linestyle"] = "--" if solver == "dense" else "-"
            panels[0].plot(ITERATIONS, worst, **style)
            panels[1].plot(ITERATIONS, drift, **style)
        panels[0].set_title(f"{title}: residual", loc="left")
        panels[1].set_title("norm error", loc="left")
        for panel in panels:
            panel.set_yscale("log")
            panel.minorticks_off()
            panel.yaxis.set_major_formatter("{x:.0e}")
            panel.grid(which="major", color="#dddddd", linewidth=0.6)
            panel.set_axisbelow(True)
            panel.spines[["top", "right"]].set_visible(False)
    first = rows[0][0]
    claimed = [1 - share for share in CLAIMS.values()]
    first.plot(
        *(list(CLAIMS), claimed, "*"), color="#CC79A7", markersize=11, markeredgecolor="black", markeredgewidth=0.6,
        label="the report's claim: “converged” to 70 %, 95 %",
    )  # fmt: skip
    for panel in rows[-1]:
        panel.set_xlabel("iterations (degree for Chebyshev)")
        panel.set_xticks([1, 3, 5, 8, 10, 15, 20])
    figure.legend(*first.get_legend_handles_labels(), loc="upper center", ncols=2, frameon=False)
    figure.tight_layout(rect=(0, 0, 1, 1 - 0.65 / figure.get_figheight()))
    figure.savefig(path, metadata={"Date": None} if path.endswith(".svg") else None)


def main(argv: list[str]) -> None:
    del argv
    plt = pyplot() if _PLOT.value else None
    psi = complex_normal(jax.random.key(0), (_TOKENS.value, _DIM.value), 1.0)
    cases = {}
    for name, noise in (("fresh weights", 0.0), ("after one step of noise", _NOISE.value)):
        hamiltonian = layer_hamiltonian(noise)
        h_lambda = _DT.value / 2 * np.linalg.eigvalsh(np.asarray(hamiltonian.matrix, np.float64))[-1]
        title = f"{name}, hλ = {h_lambda:.2f}"
        cases[title] = measure_all(hamiltonian, psi)
        print_table(f"D = {_DIM.value}, dt = {_DT.value}, {title}, κ = 1 + (hλ)² = {1 + h_lambda**2:.2f}", cases[title])
    if plt:
        plot(plt, cases, _PLOT.value)
    if _JSON.value:
        named = {title: {s: [a._asdict() for a in row] for s, row in case.items()} for title, case in cases.items()}
        Path(_JSON.value).write_text(json.dumps(named, indent=2) + "\n")


if __name__ == "__main__":
    app.run(main)
