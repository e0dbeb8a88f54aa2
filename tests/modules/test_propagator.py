from __future__ import annotations

import functools

import jax
import numpy as np
import pytest
from flax import nnx

from sem_jax.config import ModelConfig, PropagatorConfig
from sem_jax.modules.block import Context
from sem_jax.modules.model import scan_layers, stack_layers
from sem_jax.modules.propagator import Propagator

pytestmark = pytest.mark.usefixtures("quick_compilation")


def config_of(dim=16, **changes):
    return ModelConfig(
        vocab_size=2, hidden_dim=dim, propagator=PropagatorConfig(**{"laplacian_sparsity": 4, **changes})
    )


def waves(dim, seed=0):
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(2, 5, dim)) + 1j * rng.normal(size=(2, 5, dim))).astype(np.complex64)


CONTEXT = Context(np.zeros((2, 5), np.int32))  # no propagator looks at it


def layer_of(config, layer=0):
    return Propagator(config, nnx.Rngs(0), layer)


@functools.cache
def apply(config):
    """The compiled function ψ -> (ψ after the layer, statistics)."""
    propagator = layer_of(config)

    @jax.jit
    def run(psi):
        x, _, stats = propagator(psi, (), CONTEXT)
        return x, stats

    return run


@pytest.mark.parametrize("saturation", [0.0, 0.5])
def test_the_kerr_phase_turns_strong_channels_further_and_leaves_moduli(saturation):
    psi = waves(16)
    propagator = layer_of(config_of(kerr_saturation=saturation))
    propagator.alpha[...] = np.linspace(-1, 1, 16, dtype=np.float32)
    out = np.asarray(jax.jit(propagator.kerr)(psi))
    power = np.abs(psi.astype(np.complex128)) ** 2
    intensity = power / power.mean(-1, keepdims=True)
    phase = np.linspace(-1, 1, 16) * intensity / (1 + saturation * intensity)
    np.testing.assert_allclose(out, psi * np.exp(1j * phase), atol=1e-5)  # phases up to 10: rounding 10·6e-8, times |ψ|


@pytest.mark.parametrize("solver", ["cg", "dense", "chebyshev"])
def test_sixteen_layers_keep_the_norm(solver):
    config = config_of(32, solver=solver)
    stacked = stack_layers([layer_of(config, layer) for layer in range(16)])
    graphdef, variables = nnx.split(stacked)
    psi = waves(32)

    def at_one_depth(blocks, x, _):
        x, _, stats = blocks["propagators"](x, (), CONTEXT)
        return x, stats

    @jax.jit
    def run(variables, psi):
        return scan_layers({"propagators": nnx.merge(graphdef, variables)}, psi, None, at_one_depth, "none")

    x, stats = run(variables, psi)
    ratio = np.linalg.norm(x, axis=-1) / np.linalg.norm(psi, axis=-1)
    np.testing.assert_allclose(ratio, 1, atol=1e-5)
    # What each layer reports of itself: a few roundings of 6e-8.
    assert stats.norm_drift.shape == (16,)
    assert np.all(np.asarray(stats.norm_drift) < 2e-6)
    assert np.all(np.asarray(stats.residual) < 2e-6)


def test_edge_list_and_matrix_propagate_alike():
    psi = waves(16)
    sparse, _ = apply(config_of(solver="cg", matvec="sparse"))(psi)
    dense, _ = apply(config_of(solver="cg", matvec="dense"))(psi)
    np.testing.assert_allclose(sparse, dense, atol=3e-6)  # κ < 2 and a few dozen roundings of 6e-8·|ψ|


def turned_and_matrix(config, psi):
    """ψ after its Kerr phase, and H, in double precision."""
    propagator = layer_of(config)
    turned, hamiltonian = jax.jit(lambda psi: (propagator.kerr(psi), propagator.hamiltonian()))(psi)
    return np.asarray(turned, np.complex128), np.asarray(hamiltonian.matrix, float)


def test_a_solve_cut_short_is_reported():
    config = config_of(solver="cg", cg_max_iter=1, cayley_dt=2.0)
    psi = waves(16)
    x, stats = apply(config)(psi)
    turned, matrix = turned_and_matrix(config, psi)
    residual = x - turned + 1j * (x + turned) @ matrix
    expected = np.linalg.norm(residual, axis=-1) / np.linalg.norm(psi, axis=-1)
    np.testing.assert_allclose(stats.residual, expected.max(), rtol=1e-4)
    drift = np.abs(np.linalg.norm(x, axis=-1) / np.linalg.norm(psi, axis=-1) - 1)
    np.testing.assert_allclose(stats.norm_drift, drift.max(), rtol=1e-3)
    assert stats.residual > 0.01
    assert stats.iterations == 1


def test_a_zero_wave_reports_no_drift():
    x, stats = apply(config_of())(0 * waves(16))
    assert not np.any(x)
    assert stats.norm_drift == 0
    assert stats.residual == 0


def test_every_layer_and_every_scale_has_a_graph_of_its_own():
    first, second = (layer_of(config_of(32), layer) for layer in (0, 1))
    graphs = [np.asarray(edges[...]) for edges in (*first.edges, *second.edges)]
    # Sparsity 4, 8 and 16 of 32 nodes.
    assert [edges.shape[1] for edges in graphs] == [64, 128, 256] * 2
    assert len({edges.tobytes() for edges in graphs}) == 6
    assert [len(weights[...]) for weights in first.edge_weights] == [64, 128, 256]


def test_a_configured_number_of_edges_replaces_the_sparsity():
    propagator = layer_of(config_of(16, num_edges=(21, 0, 130)))
    assert [edges[...].shape[1] for edges in propagator.edges] == [21, 64, 130]
    # A complete graph of 16 nodes has 120 edges; the other ten join node 0 to itself.
    np.testing.assert_array_equal(np.sum(propagator.edges[2][0] == propagator.edges[2][1]), 10)
    degrees = [np.bincount(np.ravel(edges[...]), minlength=16) for edges in propagator.edges]
    assert degrees[0].min() > 0  # every channel is coupled to others


def test_the_time_step_is_twice_h():
    """A mode of H is turned by −2·arctan(dt·λ/2)."""
    config = config_of(cayley_dt=0.3, nonlinear_alpha=0.0)
    _, matrix = turned_and_matrix(config, waves(16))
    eigenvalue, vectors = np.linalg.eigh(matrix)
    modes = np.broadcast_to(vectors[:, -5:].T, (2, 5, 16)).astype(np.complex64)
    x, _ = apply(config)(modes)
    np.testing.assert_allclose(x, modes * np.exp(-2j * np.arctan(0.15 * eigenvalue[-5:]))[:, None], atol=2e-6)
