"""The wave propagator: a Kerr phase and one unitary Cayley step over the channels of each position."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from sem_jax.config import ModelConfig
from sem_jax.core import graph
from sem_jax.core.cayley import SolverOptions, cayley_step
from sem_jax.core.complex_ops import abs_sq, expi

NUM_SCALES = 3


class PropagatorStats(NamedTuple):
    """How well one layer solved and kept the norm."""

    residual: Array  # scalar, largest relative residual of a token
    iterations: Array  # scalar int32
    norm_drift: Array  # scalar, largest |‖x‖/‖ψ‖ − 1| of a token


class Propagator(nnx.Module):
    """ψ ← U·(ψ·exp(iαI)) with the intensity I = |ψ|²/mean|ψ|² (SPEC section 2, Propagator layer)."""

    def __init__(self, config: ModelConfig, seed: int):
        self.config = config.propagator
        self.dim = config.hidden_dim
        self.alpha = nnx.Param(jnp.full(self.dim, self.config.nonlinear_alpha))
        sparsity, rewire = self.config.laplacian_sparsity, self.config.rewire_probability
        scales = [
            graph.small_world_edges(self.dim, sparsity * 2**k, rewire, seed=NUM_SCALES * seed + k)
            for k in range(NUM_SCALES)
        ]
        self.edges = nnx.Variable(jnp.asarray(np.concatenate(scales, axis=1)))
        sizes = [edges.shape[1] for edges in scales]
        self.scale_of_edge = nnx.Variable(jnp.asarray(np.repeat(np.arange(NUM_SCALES, dtype=np.int32), sizes)))
        self.edge_weights = nnx.Param(jnp.zeros(self.edges.shape[1]))
        self.scale_weights = nnx.Param(jnp.full(NUM_SCALES, 1 / NUM_SCALES))

    def hamiltonian(self) -> graph.Hamiltonian:
        """H of this layer, as a matrix or an edge list."""
        sparse = graph.combine_scales(
            self.edges[...], self.edge_weights[...], self.scale_of_edge[...], self.scale_weights[...]
        )
        return graph.to_dense(sparse, self.dim) if self.config.matvec == "dense" else sparse

    def kerr(self, psi: Array) -> Array:
        """ψ·exp(iαI): a phase that grows with the local intensity; unitary."""
        power = abs_sq(psi)
        intensity = power / (jnp.mean(power, axis=-1, keepdims=True) + 1e-8)
        return psi * expi(self.alpha[...] * intensity)

    def __call__(self, psi: Array) -> tuple[Array, PropagatorStats]:
        """[B, S, D] complex to (the same, statistics of this layer)."""
        config = self.config
        psi = self.kerr(psi)
        options = SolverOptions(config.solver, config.cg_max_iter, config.cg_tol, config.chebyshev_degree)
        x, info = cayley_step(self.hamiltonian(), psi, config.cayley_dt / 2, options)
        before, after = jnp.sum(abs_sq(psi), axis=-1), jnp.sum(abs_sq(x), axis=-1)
        drift = jnp.abs(jnp.sqrt(after / jnp.where(before > 0, before, 1)) - (before > 0))
        return x, PropagatorStats(jnp.max(info.residual), info.iterations, jnp.max(drift))
