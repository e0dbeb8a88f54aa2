"""How fast does the Cayley solve converge? Plain CG on I + ihH against CG on the normal equations.

Command:  python benchmarks/cg_convergence.py [--dim=256 --sparsity=8 --dt=0.1 --tokens=64 --json=FILE]

Prints, for 1 to 20 iterations in float32, the relative residual of the worst token and its norm error |‖x‖/‖ψ‖ − 1|.
The Hamiltonian is that of a fresh propagator layer at the seed recipe's settings.
"""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from sem_jax.config import ModelConfig, PropagatorConfig
from sem_jax.core.cayley import SolverOptions, cayley_residual, cayley_step
from sem_jax.core.complex_ops import abs_sq, complex_normal
from sem_jax.modules.propagator import Propagator

_DIM = flags.DEFINE_integer("dim", 256, "Channels.")
_SPARSITY = flags.DEFINE_integer("sparsity", 8, "Neighbours a node in the finest graph.")
_DT = flags.DEFINE_float("dt", 0.1, "Time step.")
_TOKENS = flags.DEFINE_integer("tokens", 64, "Random wave functions to solve for.")
_JSON = flags.DEFINE_string("json", "", "File for the same numbers.")
ITERATIONS = (1, 2, 3, 4, 5, 6, 8, 10, 15, 20)


def measure(hamiltonian, psi, h, solver: str, iterations: int) -> tuple[float, float]:
    """(relative residual, norm error) of the worst token."""
    options = SolverOptions(solver, max_iter=iterations, tol=1e-30)
    x, _ = jax.jit(cayley_step, static_argnums=3)(hamiltonian, psi, h, options)
    drift = jnp.abs(jnp.sqrt(jnp.sum(abs_sq(x), -1) / jnp.sum(abs_sq(psi), -1)) - 1)
    return float(jnp.max(cayley_residual(hamiltonian, psi, x, h))), float(jnp.max(drift))


def main(argv: list[str]) -> None:
    del argv
    propagator_config = PropagatorConfig(cayley_dt=_DT.value, laplacian_sparsity=_SPARSITY.value)
    layer = Propagator(ModelConfig(hidden_dim=_DIM.value, propagator=propagator_config), seed=0)
    hamiltonian, h = layer.hamiltonian(), _DT.value / 2
    psi = complex_normal(jax.random.key(0), (_TOKENS.value, _DIM.value), 1.0)
    largest = float(np.linalg.eigvalsh(np.asarray(hamiltonian.matrix, np.float64))[-1])
    condition = 1 + (h * largest) ** 2
    print(f"D = {_DIM.value}, dt = {_DT.value}, h·λ_max = {h * largest:.3f}, condition 1 + (hλ)² = {condition:.3f}")
    print("            plain CG on I + ihH        CG on I + h²H²")
    print("iterations  residual   norm error      residual   norm error")
    rows = []
    for iterations in ITERATIONS:
        plain = measure(hamiltonian, psi, h, "cg_on_cayley", iterations)
        normal = measure(hamiltonian, psi, h, "cg", iterations)
        rows.append({"iterations": iterations, "cg_on_cayley": plain, "cg": normal})
        print(f"{iterations:10d}  {plain[0]:.2e}   {plain[1]:.2e}        {normal[0]:.2e}   {normal[1]:.2e}")
    if _JSON.value:
        Path(_JSON.value).write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    app.run(main)
