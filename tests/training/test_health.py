"""Warnings about numbers that a run should not produce."""

import math

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from small import config

from sem_jax.config import PropagatorConfig
from sem_jax.modules.block import Context
from sem_jax.modules.propagator import Propagator, PropagatorStats
from sem_jax.optim import Reason
from sem_jax.training.health import chance_warning, convergence_warnings, describe_skip
from sem_jax.training.metrics import bits_per_byte


def layer_stats(**changes):
    """Statistics of two propagators on random waves, and their configuration."""
    model = config(model__propagator__solver="cg", **changes).model
    rng = np.random.default_rng(0)
    psi = jnp.asarray(rng.normal(size=(2, 8, model.hidden_dim)) + 1j * rng.normal(size=(2, 8, model.hidden_dim)))
    context = Context(np.zeros(psi.shape[:2], np.int32))
    layers = [Propagator(model, nnx.Rngs(0), layer)(psi, (), context)[2] for layer in range(2)]
    return PropagatorStats(*map(np.stack, zip(*layers, strict=True))), model.propagator


def test_a_starved_solver_is_named_with_layer_residual_and_iterations():
    stats, solver = layer_stats(model__propagator__cg_max_iter=1, model__propagator__cayley_dt=2.0)
    warnings = [line for line in convergence_warnings(stats, solver) if "residual" in line]
    assert len(warnings) == 2
    for layer, warning in enumerate(warnings):
        assert f"propagator layer {layer}: cg left a residual of {stats.residual[layer]:.1e}" in warning
        assert stats.residual[layer] > 1e-3
        assert "after 1 iterations, above 1.0e-06" in warning
        assert "config.model.propagator.cg_max_iter" in warning


def test_the_default_solver_is_silent():
    stats, solver = layer_stats()
    assert convergence_warnings(stats, solver) == []


def stats_of(residual, drift):
    layers = len(residual)
    return PropagatorStats(np.array(residual), np.full(layers, 8), np.array(drift), np.zeros(layers))


def test_only_the_layer_beyond_a_limit_is_named():
    solver = PropagatorConfig(solver_tol=1e-7)
    warnings = convergence_warnings(stats_of([9e-7, 1.1e-6, 0.0], [0.9e-4, 0.0, 1.1e-4]), solver)
    assert [warning.partition(":")[0] for warning in warnings] == ["propagator layer 1", "propagator layer 2"]
    assert "residual" in warnings[0]
    assert "not unitary" in warnings[1]


@pytest.mark.parametrize(
    ("solver", "cure"),
    [("cg", "cg_max_iter"), ("chebyshev", "chebyshev_degree"), ("dense", "cayley_dt"), ("cg_on_cayley", "solver = cg")],
)
def test_the_cure_is_one_of_the_solver_in_use(solver, cure):
    (warning,) = convergence_warnings(stats_of([1e-3], [0.0]), PropagatorConfig(solver=solver))
    assert cure in warning
    assert ("cg_max_iter" in warning) == (solver == "cg")


def test_edge_weights_warn_only_where_they_have_certainly_outgrown_the_step():
    """λ_max lies between the largest weighted degree and its double, which is what a step reports."""
    stats = stats_of([0.0, 0.0], [0.0, 0.0])._replace(h_lambda=np.array([9.9, 10.1]))
    (warning,) = convergence_warnings(stats, PropagatorConfig())
    assert warning.startswith("propagator layer 1: hλ is 5.05 or more, above 5")
    assert "config.model.propagator.cayley_dt" in warning


def test_nan_is_a_warning_not_silence():
    assert len(convergence_warnings(stats_of([math.nan], [math.nan]), PropagatorConfig())) == 2


def test_a_skip_is_told_by_its_cause_and_its_leaf():
    names = ["readout/bias", "readout/weight"]
    assert describe_skip(int(Reason.GRADIENT), 1, names) == "gradient not finite or too large in readout/weight"
    assert describe_skip(int(Reason.LOSS), -1, names) == "loss not finite or too large"
    assert len({describe_skip(int(reason), 0, names) for reason in Reason}) == len(Reason)


def test_a_fair_coin_a_byte_is_one_bit():
    assert bits_per_byte(math.log(2), 1.0) == pytest.approx(1.0, rel=1e-15)
    assert bits_per_byte(math.log(2), 4.0) == pytest.approx(0.25, rel=1e-15)


def test_a_model_worse_than_a_guess_is_named():
    assert chance_warning(math.log(23), 23) is None
    assert chance_warning(math.nan, 23) is None  # the guard speaks of that
    assert "worse than a guess (ln 23 = 3.135 nats/token): lower optimizer.learning_rate" in chance_warning(161.0, 23)
