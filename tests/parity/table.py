"""How far sem_jax is from the PyTorch reference: the largest relative deviations, as a table.

Command:  PYTHONPATH=tests python -m parity.table

Each deviation is relative to the largest entry of its array; of all gradients the worst is shown, and in which array.
Both precisions are compared with the reference in float64. After 50 steps, "values" are the losses on the way and
"gradients" the parameters.
"""

from __future__ import annotations

import jax
import numpy as np
import torch

from .comparison import FLOAT32, FLOAT64, SECOND_VALUE, VALUE, Arrays, Case, relative_errors
from .components import COMPONENTS, MODELS
from .training import LOSSES, RUNS, Precision, train_ours, train_theirs


def row(name: str, results: list[tuple[Arrays, Arrays]], values: set[str]) -> str:
    """One line from (ours, truth) in float64 and in float32."""
    cells = []
    for ours, truth in results:
        errors = relative_errors(ours, truth)
        value = max(e for key, e in errors.items() if key in values)
        worst = max((e, key) for key, e in errors.items() if key not in values)
        cells.append(f"{value:.1e} | {worst[0]:.1e} {worst[1]}")
    return f"| {name} | {' | '.join(cells)} |"


def main() -> None:
    jax.config.update("jax_disable_most_optimizations", True)
    torch.set_num_threads(1)
    print("| component | values, float64 | gradients, float64 | values, float32 | gradients, float32 |")
    print("|---|---|---|---|---|", flush=True)
    for component in [*COMPONENTS, *MODELS]:
        case = Case(component, seed=0)
        truth = case.truth()
        with jax.enable_x64(True):
            exact = case.jax_results(FLOAT64)
        results = [(exact, truth), (case.jax_results(FLOAT32), truth)]
        print(row(component.name, results, {VALUE, SECOND_VALUE}), flush=True)
    for name, run in RUNS.items():
        results = []
        for dtype in (FLOAT64, FLOAT32):
            with jax.enable_x64(dtype == FLOAT64):
                ours, rates = train_ours(run, dtype)
            results.append((ours, train_theirs(run, rates, Precision(np.dtype(np.float64), noise_drawn_in=dtype))))
        print(row(f"50 steps, {name}", results, {LOSSES}), flush=True)


if __name__ == "__main__":
    main()
