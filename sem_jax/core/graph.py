"""The Hamiltonian: a weighted graph Laplacian on the D channels, real, symmetric, positive semi-definite.

H = Σ_k softmax(w)_k (Deg_k − A_k) over three small-world graphs is itself one Laplacian: its edge list is the three
lists end to end and its weights are softmax(w)_k·softplus(e_k). So a Hamiltonian is a list of weighted edges, or the
matrix built from it, and every row of H sums to zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from sem_jax.core.complex_ops import HIGHEST


class SparseHamiltonian(NamedTuple):
    """Edge list form. An edge from a node to itself contributes nothing and serves as padding."""

    edges: Array  #: [2, E] int, the two ends of each undirected edge
    weights: Array  #: [E] real, non-negative


class DenseHamiltonian(NamedTuple):
    """Matrix form."""

    matrix: Array  #: [D, D] real symmetric


Hamiltonian = SparseHamiltonian | DenseHamiltonian


def small_world_edges(
    num_nodes: int, neighbours: int, rewire_probability: float, seed: int, num_edges: int = 0
) -> np.ndarray:
    """Edges of a small-world graph (Watts and Strogatz, 1998), exactly floor(num_nodes·neighbours / 2) or `num_edges`.

    A ring lattice in which every node is joined to its nearest `neighbours` nodes; each edge keeps one end and moves
    the other to a random node with the given probability. Differs from the PyTorch original, which adds long-range
    edges at odd sparsities only. The count of edges does not depend on the seed, so layers can be stacked.

    Args:
      num_nodes: D >= 2.
      neighbours: mean degree; at num_nodes − 1 and above the graph is complete.
      rewire_probability: in [0, 1].
      seed: of the rewiring.
      num_edges: E; 0: as `neighbours` says. What a complete graph has no room for is padding, edges from 0 to 0.

    Returns:
      [2, E] int32, i < j in each column, no edge twice, sorted; the padding stands last.
    """
    neighbours = min(neighbours, num_nodes - 1)
    count = min(num_edges or num_nodes * neighbours // 2, num_nodes * (num_nodes - 1) // 2)
    adjacent: list[set[int]] = [set() for _ in range(num_nodes)]
    edges: list[tuple[int, int]] = []
    for distance in range(1, num_nodes // 2 + 1):
        if len(edges) == count:
            break
        for node in range(num_nodes):
            other = (node + distance) % num_nodes
            if len(edges) < count and other not in adjacent[node]:
                edges.append((node, other))
                adjacent[node].add(other)
                adjacent[other].add(node)
    rng = np.random.default_rng(seed)
    for index, (node, old) in enumerate(edges):
        if rng.random() >= rewire_probability or len(adjacent[node]) == num_nodes - 1:
            continue
        free = np.ones(num_nodes, bool)
        free[[node, *adjacent[node]]] = False
        new = int(rng.choice(np.flatnonzero(free)))
        edges[index] = (node, new)
        adjacent[node] ^= {old, new}
        adjacent[old].remove(node)
        adjacent[new].add(node)
    columns = np.array(sorted((min(edge), max(edge)) for edge in edges), np.int32).T.reshape(2, -1)
    return np.pad(columns, ((0, 0), (0, max(num_edges - count, 0))))


def combine_scales(edges: Sequence[Array], edge_weights: Sequence[Array], scale_logits: Array) -> SparseHamiltonian:
    """One Laplacian from several graphs: the edges of scale k weigh softmax(scale_logits)_k·softplus(edge_weights_k).

    Args:
      edges: of each scale, [2, E_k] int.
      edge_weights: of each scale, [E_k] real, before softplus.
      scale_logits: [number of scales] real.
    """
    share = jax.nn.softmax(scale_logits)
    weights = [share[k] * jax.nn.softplus(raw) for k, raw in enumerate(edge_weights)]
    return SparseHamiltonian(jnp.concatenate(edges, axis=1), jnp.concatenate(weights))


def to_dense(hamiltonian: SparseHamiltonian, dim: int) -> DenseHamiltonian:
    """The matrix of the same Laplacian, [dim, dim]."""
    i, j = hamiltonian.edges
    weights = jnp.where(i == j, 0, hamiltonian.weights)  # w + w − w − w is not 0 once it is added to other weights
    matrix = jnp.zeros((dim, dim), weights.dtype)
    matrix = matrix.at[i, i].add(weights).at[j, j].add(weights)
    return DenseHamiltonian(matrix.at[i, j].add(-weights).at[j, i].add(-weights))


def matvec(hamiltonian: Hamiltonian, psi: Array) -> Array:
    """H·ψ over the last axis of ψ [..., D], real or complex."""
    if isinstance(hamiltonian, DenseHamiltonian):
        return _matmul(psi, hamiltonian.matrix)
    i, j = hamiltonian.edges
    flow = hamiltonian.weights * (psi[..., i] - psi[..., j])
    return jnp.zeros_like(psi).at[..., i].add(flow).at[..., j].add(-flow)


def _matmul(psi: Array, matrix: Array) -> Array:
    if not jnp.iscomplexobj(psi):
        return jnp.matmul(psi, matrix, precision=HIGHEST)
    real = jnp.matmul(psi.real, matrix, precision=HIGHEST)
    return jax.lax.complex(real, jnp.matmul(psi.imag, matrix, precision=HIGHEST))


def spectral_bound(hamiltonian: Hamiltonian, dim: int) -> Array:
    """Upper bound of the largest eigenvalue of H: twice the largest weighted degree (Gershgorin), a scalar."""
    if isinstance(hamiltonian, DenseHamiltonian):
        return 2 * jnp.max(jnp.diagonal(hamiltonian.matrix))
    i, j = hamiltonian.edges
    weights = jnp.where(i == j, 0, hamiltonian.weights)
    return 2 * jnp.max(jnp.zeros(dim, weights.dtype).at[i].add(weights).at[j].add(weights))
