"""The wave propagator: a Kerr phase and one unitary Cayley step over the channels of each position."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from sem_jax.config import ModelConfig
from sem_jax.core import graph
from sem_jax.core.cayley import PreparedStep, SolverOptions, cayley_step, prepare_step
from sem_jax.core.complex_ops import abs_sq, expi
from sem_jax.modules.block import Block, Context
from sem_jax.modules.cost import COMPLEX, COMPLEX_MATMUL, MULTIPLY_ADD, REAL_TIMES_COMPLEX, Cost
from sem_jax.modules.probe import Probe, unobserved

NUM_SCALES = 3


class PropagatorStats(NamedTuple):
    """How well one layer solved and kept the norm."""

    residual: Array  # scalar, largest relative residual of a token
    iterations: Array  # scalar int32
    norm_drift: Array  # scalar, largest |‖x‖/‖ψ‖ − 1| of a token
    h_lambda: Array  # scalar, upper bound of hλ_max (Gershgorin); λ turns by the phase 2·atan(hλ)


class Propagator(Block):
    """ψ ← U·(ψ·exp(iαI/(1 + σI))) with the intensity I = |ψ|²/mean|ψ|² (docs/mathematics.md, section 2, Propagator).

    It mixes the channels of one position and looks at no other.
    """

    PARTS: ClassVar = {"kerr": ("alpha",), "cayley": ("edge_weights", "scale_weights")}

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs, layer: int):
        del rngs  # nothing random but the graph, which is a function of the depth
        self.config = config.propagator
        self.dim = config.hidden_dim
        self.alpha = nnx.Param(jnp.full(self.dim, self.config.nonlinear_alpha), decay=False)
        scales = [self._fresh_graph(k, NUM_SCALES * layer + k) for k in range(NUM_SCALES)]
        self.edges = nnx.List([nnx.Variable(jnp.asarray(edges)) for edges in scales])
        self.edge_weights = nnx.List([nnx.Param(jnp.zeros(edges.shape[1]), decay=False) for edges in scales])
        self.scale_weights = nnx.Param(jnp.full(NUM_SCALES, 1 / NUM_SCALES), decay=False)

    def _fresh_graph(self, scale: int, seed: int) -> np.ndarray:
        config = self.config
        neighbours = config.laplacian_sparsity * 2**scale
        return graph.small_world_edges(self.dim, neighbours, config.rewire_probability, seed, config.num_edges[scale])

    def hamiltonian(self) -> graph.Hamiltonian:
        """H of this layer, as a matrix or an edge list."""
        edges, weights = ([scale[...] for scale in scales] for scales in (self.edges, self.edge_weights))
        sparse = graph.combine_scales(edges, weights, self.scale_weights[...])
        return graph.to_dense(sparse, self.dim) if self.config.matvec == "dense" else sparse

    def kerr(self, psi: Array) -> Array:
        """ψ·exp(iαI/(1 + σI)): a phase that grows with the local intensity, and saturates if σ > 0; unitary."""
        power = abs_sq(psi)
        intensity = power / (jnp.mean(power, axis=-1, keepdims=True) + 1e-8)
        if saturation := self.config.kerr_saturation:
            # A channel may have hundreds of times the mean power; a phase in proportion to it would be chaotic.
            intensity = intensity / (1 + saturation * intensity)
        return psi * expi(self.alpha[...] * intensity)

    def solver_options(self) -> SolverOptions:
        """How U is applied."""
        config = self.config
        return SolverOptions(config.solver, config.cg_max_iter, config.solver_tol, config.chebyshev_degree)

    def prepare(self) -> PreparedStep:
        """H, and U where the solver uses it: all of the step that does not depend on ψ."""
        return prepare_step(self.hamiltonian(), self.dim, self.config.cayley_dt / 2, self.solver_options())

    def __call__(
        self,
        x: Array,
        state: tuple[()],
        context: Context,
        probe: Probe = unobserved,
        prepared: PreparedStep | None = None,
    ) -> tuple[Array, tuple[()], PropagatorStats]:
        """See `Block`; the statistics are those of this layer, the worst of all tokens."""
        del context
        h = self.config.cayley_dt / 2
        psi = probe("kerr", self.kerr(x))
        prepared = self.prepare() if prepared is None else prepared
        x, info = cayley_step(prepared, psi, h, self.solver_options())
        x = probe("cayley", x)
        before, after = jnp.sum(abs_sq(psi), axis=-1), jnp.sum(abs_sq(x), axis=-1)
        drift = jnp.abs(jnp.sqrt(after / jnp.where(before > 0, before, 1)) - (before > 0))
        h_lambda = jax.lax.stop_gradient(h * graph.spectral_bound(prepared.hamiltonian, self.dim))
        return x, state, PropagatorStats(jnp.max(info.residual), info.iterations, jnp.max(drift), h_lambda)

    def inspect(self, values: Mapping[str, Array], state: tuple[()], context: Context) -> Array:
        """H as a matrix [D, D], whose eigenvalues tell the condition of the solve."""
        del values, state, context
        hamiltonian = self.hamiltonian()
        if isinstance(hamiltonian, graph.SparseHamiltonian):
            hamiltonian = graph.to_dense(hamiltonian, self.dim)
        return hamiltonian.matrix

    def costs(self, tokens: int) -> dict[str, Cost]:
        """See `Block`."""
        dim, config = self.dim, self.config
        wave = COMPLEX * tokens * dim
        product_with_h: float = REAL_TIMES_COMPLEX * tokens * dim * dim
        if config.matvec == "sparse" and config.solver != "dense":
            product_with_h = 8 * tokens * dim * config.laplacian_sparsity * 7 / 2  # as many edges a channel
        # U from H: two products, a factorisation and the solution for D right-hand sides.
        factor = (2 * MULTIPLY_ADD + 1 / 3 + 2) * dim**3 if config.solver == "dense" else 0
        once = {
            "dense": COMPLEX_MATMUL * tokens * dim * dim,
            "cg": (2 * config.cg_max_iter + 1) * product_with_h,
            "chebyshev": config.chebyshev_degree * product_with_h,
            "cg_on_cayley": (config.cg_max_iter + 1) * product_with_h,
        }[config.solver]
        return {
            "kerr": Cost(0, 0, wave, wave),
            "cayley/unitary": Cost(factor, 0),
            # Backwards one more step and the gradient of H.
            "cayley/step": Cost(once, once + product_with_h, wave, wave),
            "cayley/residual": Cost(product_with_h, 0),  # only to be reported
        }
