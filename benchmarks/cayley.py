"""Which solver of the Cayley step is fastest at which size, and how exact is it?

Command:  python benchmarks/cayley.py [--dims=64,128,256,512] [--dts=0.1] [--tokens=128,1024] [--seconds=1]
          [--solvers=dense,cg,chebyshev] [--matvec=dense] [--json=FILE]

One layer's step of random waves by a fresh Hamiltonian, from edge weights to x, with the solver settings of the default
configuration; forward, and with the gradient to the waves and to the edge weights. The residual is the worst of a wave.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from absl import app, flags
from flax import nnx
from parts import Part, passes, time_passes
from shapes import Shape, configuration
from timing import Timing, machine, milliseconds, table, write_json

from sem_jax.core.cayley import SolverOptions, cayley_step
from sem_jax.core.complex_ops import complex_normal
from sem_jax.modules.propagator import Propagator

_DIMS = flags.DEFINE_list("dims", ["64", "128", "256", "512"], "Channels.")
_DTS = flags.DEFINE_list("dts", ["0.1"], "Time steps.")
_TOKENS = flags.DEFINE_list("tokens", ["128", "1024"], "Waves.")
_SOLVERS = flags.DEFINE_list("solvers", ["dense", "cg", "chebyshev"], "Solvers.")
_MATVEC = flags.DEFINE_string("matvec", "dense", "Products with H by the matrix (dense) or by its edges (sparse).")
_SECONDS = flags.DEFINE_float("seconds", 1.0, "Time for each measurement.")
_JSON = flags.DEFINE_string("json", "", "File for the same numbers.")


class Point(NamedTuple):
    """One solver at one size."""

    dim: int
    dt: float
    tokens: int
    solver: str
    forward: Timing
    training: Timing
    residual: float


def measure(dim: int, dt: float, tokens: int) -> list[Point]:
    psi = complex_normal(jax.random.key(0), (tokens, dim), 1.0)
    contenders, residuals = {}, {}
    for solver in _SOLVERS.value:
        changes = {"propagator.matvec": _MATVEC.value, "propagator.cayley_dt": dt}
        model = configuration(Shape(dim, 1, 64, batch=1, length=tokens), changes).model
        p = model.propagator
        options = SolverOptions(solver, p.cg_max_iter, p.solver_tol, p.chebyshev_degree)

        def step(module, psi, options=options):
            x, info = cayley_step(module.hamiltonian(), psi, dt / 2, options)
            return x, jnp.max(info.residual)

        contenders[solver] = passes(Part(step, Propagator(model, nnx.Rngs(0), 0), (psi,)))
        residuals[solver] = float(contenders[solver]["forward"]()[1])
    times = time_passes(contenders, _SECONDS.value)
    return [Point(dim, dt, tokens, solver, *both, residuals[solver]) for solver, both in times.items()]


def main(argv: list[str]) -> None:
    del argv
    host = machine()
    print(host.describe(), flush=True)
    points: list[Point] = []
    for dim in map(int, _DIMS.value):
        for dt in map(float, _DTS.value):
            for tokens in map(int, _TOKENS.value):
                points += measure(dim, dt, tokens)
    rows: list[list[Any]] = [
        [p.dim, p.dt, p.tokens, p.solver, milliseconds(p.forward), milliseconds(p.training), f"{p.residual:.1e}"]
        for p in points
    ]
    print(table(["D", "dt", "waves", "solver", "forward, ms", "with backward, ms", "residual"], rows))
    if _JSON.value:
        write_json(_JSON.value, {"machine": host, "matvec": _MATVEC.value, "points": points})


if __name__ == "__main__":
    app.run(main)
