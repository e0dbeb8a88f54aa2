"""The walk is the model's own pass: same wave, same loss, same gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import config

from sem_jax.core.cayley import SolverOptions, cayley_step
from sem_jax.core.graph import DenseHamiltonian
from sem_jax.data import Batch
from sem_jax.diagnosis.record import cg_iterations, largest_eigenvalue
from sem_jax.diagnosis.walk import RecordingObserver, empty_slots, measure
from sem_jax.modules.model import init_model
from sem_jax.training.loss import batch_loss

pytestmark = pytest.mark.usefixtures("quick_compilation")

FORMS = {
    "default": {},
    "reference": {
        "model__encoder__transport": "sequence_sinkhorn",
        "model__encoder__embedding_skip": False,
        "model__likelihood": "reference",
        "model__mixer__clamp_interval": 3,
        "model__propagator__solver": "cg",
        "model__propagator__matvec": "sparse",
        "model__remat": "layers",
    },
    "interleaved": {"model__layout": "interleaved", "model__encoder__transport": "none"},
}


def small(**changes):
    return config(**{"model__vocab_size": 40, "model__num_layers": 2} | changes)


def batch_of(cfg):
    rng = np.random.default_rng(0)
    shape = (3, 9)
    tokens = rng.permutation(cfg.model.vocab_size)[: np.prod(shape)].reshape(shape).astype(np.int32)
    resets = rng.random(shape) < 0.2
    return Batch(tokens, resets, (rng.random((3, 8)) < 0.8).astype(np.float32))


@functools.cache
def measured(form):
    """(batch, measurement, walk's final wave, ((loss, wave), gradient) of the model itself)."""
    with jax.enable_x64(True):
        cfg = small(**FORMS[form])
        parts = init_model(cfg.model, 0)
        batch = batch_of(cfg)

        def loss(params):
            tokens, resets, weights = map(jnp.asarray, batch)
            model = parts.replace(params=params).merge()
            args = tokens[:, :-1], tokens[:, 1:], resets[:, :-1], weights, cfg.optimizer.unitary_lambda
            sums, _, _ = batch_loss(model, *args)
            return sums.loss / sums.weight, model(tokens[:, :-1], resets=resets[:, :-1])[0]

        def both(parts):
            model = parts.merge()
            tokens, resets, _ = map(jnp.asarray, batch)
            observer = RecordingObserver(empty_slots(model))
            psi, *_ = model(tokens[:, :-1], resets=resets[:, :-1], observer=observer)
            found = measure(parts, batch, cfg.optimizer.unitary_lambda)
            return found, psi, jax.value_and_grad(loss, has_aux=True)(parts.params)

        return batch, *jax.device_get(jax.jit(both)(parts))


@pytest.mark.parametrize("form", [pytest.param(f, marks=pytest.mark.slow) if f != "default" else f for f in FORMS])
def test_wave_loss_and_gradients_are_the_models_own(x64, form):
    _, found, walked, ((loss, psi), gradients) = measured(form)
    assert found.loss == pytest.approx(loss, rel=1e-12)
    np.testing.assert_allclose(walked, psi, rtol=1e-11, atol=1e-13)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12), found.gradients, gradients)


def test_the_gradient_at_a_part_is_described(x64):
    batch, found, _, _ = measured("default")
    # Of the mean over target tokens, with respect to each token's loss.
    share = batch.weights.astype(np.float64) / batch.weights.sum()
    assert found.part_gradients["head"]["readout"].rms == pytest.approx(np.sqrt(np.mean(share**2)), rel=1e-12)
    assert found.part_gradients["head"]["readout"].largest == pytest.approx(share.max(), rel=1e-12)
    # No token stands twice in the batch, so each row of the embedding gets the gradient of one position.
    rows = found.gradients["encoder"]["embedding"][batch.tokens[:, :-1]]
    assert found.part_gradients["encoder"]["embedding"].rms == pytest.approx(np.sqrt(np.mean(rows**2)), rel=1e-12)
    assert found.part_gradients["encoder"]["embedding"].largest == pytest.approx(np.abs(rows).max(), rel=1e-12)
    # A unitary step keeps the norm of the gradient, too.
    kerr, cayley = (found.part_gradients["propagators"][part].rms for part in ("kerr", "cayley"))
    np.testing.assert_allclose(kerr, cayley, rtol=1e-9)


@pytest.mark.parametrize("h_lambda", [0.0, 0.5, 2.0, 10.0])
def test_cg_keeps_its_bound(x64, h_lambda):
    rng = np.random.default_rng(1)
    basis = np.linalg.qr(rng.normal(size=(32, 32)))[0]
    matrix = basis * np.linspace(0, 1, 32) @ basis.T
    assert largest_eigenvalue(matrix) == pytest.approx(1, rel=1e-12)
    psi = jnp.asarray(rng.normal(size=(5, 32)) + 1j * rng.normal(size=(5, 32)))
    needed = cg_iterations(h_lambda, 1e-6)
    options = SolverOptions("cg", needed, 0.0)
    _, info = cayley_step(DenseHamiltonian(jnp.asarray(matrix)), psi, h_lambda, options)
    assert np.all(np.asarray(info.residual) <= 1e-6)
