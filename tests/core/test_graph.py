from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components, shortest_path

from sem_jax.core.graph import (
    DenseHamiltonian,
    SparseHamiltonian,
    combine_scales,
    matvec,
    small_world_edges,
    spectral_bound,
    to_dense,
)

SEEDS = st.integers(0, 2**31 - 1)
DIMS = st.sampled_from([2, 7])  # few, since every shape is compiled
NUM_EDGES = 9

pytestmark = pytest.mark.usefixtures("quick_compilation")

jit_to_dense = jax.jit(to_dense, static_argnums=1)
jit_matvec = jax.jit(matvec)
jit_bound = jax.jit(spectral_bound, static_argnums=1)


def random_graph(dim, seed):
    """Random weighted edges, self-loops and parallel edges among them."""
    rng = np.random.default_rng(seed)
    return SparseHamiltonian(rng.integers(0, dim, size=(2, NUM_EDGES)), rng.uniform(0, 2, size=NUM_EDGES))


def laplacian(graph, dim):
    """Σ_e w_e·(e_i − e_j)(e_i − e_j)ᵀ, edge by edge."""
    matrix = np.zeros((dim, dim))
    for i, j, weight in zip(*graph.edges, graph.weights, strict=True):
        difference = np.eye(dim)[i] - np.eye(dim)[j]
        matrix += weight * np.outer(difference, difference)
    return matrix


# NUM_EDGES weights below 2: entries below 36, rounding below 36·1e-16 a few times over.
TOLERANCE = 1e-13


@given(dim=DIMS, seed=SEEDS)
@pytest.mark.usefixtures("x64")
def test_the_matrix_is_the_laplacian_of_the_edges(dim, seed):
    graph = random_graph(dim, seed)
    np.testing.assert_allclose(jit_to_dense(graph, dim).matrix, laplacian(graph, dim), atol=TOLERANCE)


@given(dim=DIMS, seed=SEEDS)
@pytest.mark.usefixtures("x64")
def test_the_matrix_is_symmetric_positive_semidefinite_with_zero_row_sums(dim, seed):
    matrix = np.asarray(jit_to_dense(random_graph(dim, seed), dim).matrix)
    np.testing.assert_allclose(matrix, matrix.T, atol=TOLERANCE)
    np.testing.assert_allclose(matrix.sum(axis=1), 0, atol=TOLERANCE)
    assert np.linalg.eigvalsh(matrix).min() > -TOLERANCE


@jax.jit
def all_products(graph, matrix, psi):
    return [matvec(form, x) for form in (graph, DenseHamiltonian(matrix)) for x in (psi, psi.real)]


@given(dim=DIMS, seed=SEEDS)
@pytest.mark.usefixtures("x64")
def test_both_forms_multiply_like_the_laplacian(dim, seed):
    graph = random_graph(dim, seed)
    rng = np.random.default_rng(seed)
    psi = rng.normal(size=(2, 3, dim)) + 1j * rng.normal(size=(2, 3, dim))
    matrix = laplacian(graph, dim)
    for product, x in zip(all_products(graph, matrix, psi), [psi, psi.real] * 2, strict=True):
        np.testing.assert_allclose(product, x @ matrix, atol=10 * TOLERANCE)


@given(dim=DIMS, seed=SEEDS)
@pytest.mark.usefixtures("x64")
def test_the_spectral_bound_is_a_bound(dim, seed):
    graph = random_graph(dim, seed)
    matrix = laplacian(graph, dim)
    largest = np.linalg.eigvalsh(matrix)[-1]
    for bound in (jit_bound(graph, dim), jit_bound(DenseHamiltonian(matrix), dim)):
        assert largest - TOLERANCE <= bound
        # Gershgorin is at most a factor two away, since λ_max is at least the largest degree.
        assert bound <= 2 * largest + TOLERANCE


@given(dim=st.just(7), seed=SEEDS, node=st.integers(0, 6))
@pytest.mark.usefixtures("x64")
def test_self_loops_are_padding(dim, seed, node):
    graph = random_graph(dim, seed)
    padded = SparseHamiltonian(
        np.concatenate([graph.edges, np.full((2, 4), node)], axis=1), np.concatenate([graph.weights, 1e3 * np.ones(4)])
    )
    psi = np.random.default_rng(seed).normal(size=dim) + 1j
    np.testing.assert_array_equal(jit_to_dense(padded, dim).matrix, jit_to_dense(graph, dim).matrix)
    np.testing.assert_array_equal(jit_matvec(padded, psi), jit_matvec(graph, psi))
    np.testing.assert_array_equal(jit_bound(padded, dim), jit_bound(graph, dim))


@pytest.mark.usefixtures("x64")
def test_self_loops_get_no_gradient():
    edges = np.array([[0, 1, 1], [1, 2, 1]])
    psi = np.array([1.0, 3.0, 10.0])

    def energy(weights, form):
        graph = SparseHamiltonian(edges, weights)
        graph = to_dense(graph, 3) if form == "dense" else graph
        return jnp.dot(psi, matvec(graph, psi))

    for form in ("dense", "sparse"):
        # ψᵀHψ = Σ w·(ψ_i − ψ_j)²
        gradient = jax.jit(jax.grad(energy), static_argnums=1)(np.ones(3), form)
        np.testing.assert_allclose(gradient, [4, 49, 0], atol=1e-12)


@given(seed=SEEDS)
@pytest.mark.usefixtures("x64")
def test_scales_are_mixed_by_the_softmax_of_their_logits(seed):
    rng = np.random.default_rng(seed)
    graphs = [random_graph(5, seed + k) for k in range(3)]
    raw, logits = rng.normal(size=(3, NUM_EDGES)), rng.normal(size=3)
    share = np.exp(logits) / np.exp(logits).sum()
    expected = sum(
        share[k] * laplacian(SparseHamiltonian(graphs[k].edges, np.log1p(np.exp(raw[k]))), 5) for k in range(3)
    )
    combined = jax.jit(combine_scales)([graph.edges for graph in graphs], list(raw), logits)
    np.testing.assert_allclose(laplacian(jax.tree.map(np.asarray, combined), 5), expected, atol=TOLERANCE)


SIZES = [(2, 1), (3, 1), (5, 2), (9, 3), (16, 5), (33, 4), (64, 8)]


@given(size=st.sampled_from(SIZES), probability=st.sampled_from([0.0, 0.1, 0.5, 1.0]), seed=SEEDS)
def test_a_small_world_has_its_number_of_different_edges(size, probability, seed):
    nodes, neighbours = size
    edges = small_world_edges(nodes, neighbours, probability, seed)
    assert edges.dtype == np.int32
    assert edges.shape == (2, nodes * neighbours // 2)
    assert np.all(edges[0] < edges[1])
    assert np.all((edges >= 0) & (edges < nodes))
    assert len(set(map(tuple, edges.T))) == edges.shape[1]


@given(nodes=st.integers(2, 12), extra=st.integers(-1, 40), seed=SEEDS)
def test_a_small_world_is_complete_at_high_sparsity(nodes, extra, seed):
    edges = small_world_edges(nodes, nodes + extra, 0.5, seed)
    assert set(map(tuple, edges.T)) == {(i, j) for j in range(nodes) for i in range(j)}


@given(nodes=st.integers(2, 12), num_edges=st.integers(1, 80), seed=SEEDS)
def test_a_small_world_of_a_given_number_of_edges_is_padded_where_no_more_exist(nodes, num_edges, seed):
    edges = small_world_edges(nodes, 2, 0.3, seed, num_edges)
    assert edges.shape == (2, num_edges)
    proper = edges[:, edges[0] < edges[1]]
    assert len(set(map(tuple, proper.T))) == proper.shape[1] == min(num_edges, nodes * (nodes - 1) // 2)
    assert not np.any(edges[:, proper.shape[1] :])


def ring_distance(edges, nodes):
    distance = np.abs(edges[0] - edges[1])
    return np.minimum(distance, nodes - distance)


@pytest.mark.parametrize("neighbours", [1, 2, 3, 4, 5, 8, 12])
def test_every_sparsity_has_long_range_edges(neighbours):
    nodes, seeds, probability = 64, 20, 0.1
    reach = (neighbours + 1) // 2
    long = sum(
        int(np.sum(ring_distance(small_world_edges(nodes, neighbours, probability, seed), nodes) > reach))
        for seed in range(seeds)
    )
    # Binomial: of the rewired edges all but a share 2·reach/nodes leave the lattice's reach; five standard deviations.
    count = seeds * (nodes * neighbours // 2)
    mean = probability * (1 - 2 * reach / nodes)
    assert abs(long - count * mean) < 5 * np.sqrt(count * mean) + 0.1 * count * mean


@pytest.mark.parametrize("neighbours", [2, 3, 6])
def test_without_rewiring_the_world_is_a_ring_lattice(neighbours):
    edges = small_world_edges(24, neighbours, 0.0, seed=0)
    expected = 24 * np.array([1] * (neighbours // 2) + [0.5] * (neighbours % 2))
    np.testing.assert_array_equal(np.bincount(ring_distance(edges, 24))[1:], expected)


def hops(edges, nodes):
    return shortest_path(
        csr_array((np.ones(edges.shape[1]), edges), shape=(nodes, nodes)), directed=False, unweighted=True
    )


def test_rewiring_shortens_paths_and_keeps_the_world_in_one_piece():
    nodes, neighbours = 64, 6
    lattice = hops(small_world_edges(nodes, neighbours, 0.0, 0), nodes).mean()
    for seed in range(10):
        edges = small_world_edges(nodes, neighbours, 0.1, seed)
        pieces, _ = connected_components(csr_array((np.ones(edges.shape[1]), edges), shape=(nodes, nodes)))
        assert pieces == 1
        # Watts and Strogatz, figure 2: at probability .1 the mean path is well below that of the lattice.
        assert hops(edges, nodes).mean() < 0.7 * lattice


def test_the_seed_decides_the_world():
    same, again, other = (small_world_edges(32, 4, 0.3, seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(same, again)
    assert not np.array_equal(same, other)


@settings(max_examples=5)
@given(seed=SEEDS)
def test_rewiring_keeps_one_end_of_every_edge(seed):
    """With all edges moved, every node still owns the edges it started with: no node of an even lattice is lost."""
    edges = small_world_edges(40, 4, 1.0, seed)
    assert np.bincount(edges.ravel(), minlength=40).min() >= 2
