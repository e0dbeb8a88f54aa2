"""What a model says about given tokens; the recorded models are in tests/interop."""

from __future__ import annotations

import numpy as np
import pytest
from small import config

from sem_jax.modules.model import init_model
from sem_jax.training.token_outputs import token_outputs

pytestmark = pytest.mark.usefixtures("quick_compilation")

VOCAB = 11
LAMBDA = 0.3
TOKENS = np.random.default_rng(0).integers(0, VOCAB, (2, 6)).astype(np.int32)


def outputs_of(**changes):
    outputs = token_outputs(init_model(config(model__vocab_size=VOCAB, **changes).model, 0), TOKENS, None, LAMBDA)
    return {name: np.asarray(array, np.float64) for name, array in outputs.items()}


def at_targets(array):
    return np.take_along_axis(array[:, :-1], TOKENS[:, 1:, None], axis=-1)[..., 0]


# Sums of 11 and means of 10 numbers near 1 in float32: a few roundings of 6e-8.
ROUNDING = 2e-6


def test_the_normalised_likelihood_gives_log_probabilities():
    out = outputs_of(model__likelihood="born")
    np.testing.assert_allclose(np.exp(out["logits"]).sum(-1), 1, atol=ROUNDING)
    np.testing.assert_allclose(out["nll"], -at_targets(out["logits"]).mean(), rtol=ROUNDING)
    # A fresh readout has no bias: P is a over its sum, but for the share of the uniform distribution.
    share = out["amp_sq"] / out["amp_sq"].sum(-1, keepdims=True)
    np.testing.assert_allclose(np.exp(out["logits"]), (share + 1e-6 / VOCAB) / (1 + 1e-6), atol=ROUNDING)
    log_z = np.log(out["amp_sq"].sum(-1))[:, :-1]
    np.testing.assert_allclose(out["unitary_divergence"], np.mean(log_z**2), rtol=1e-5)
    np.testing.assert_allclose(out["loss"], out["nll"] + LAMBDA * out["unitary_divergence"], rtol=ROUNDING)


def test_the_coherent_likelihood_gives_log_probabilities():
    out = outputs_of()
    np.testing.assert_allclose(np.exp(out["logits"]).sum(-1), 1, atol=ROUNDING)
    np.testing.assert_allclose(out["nll"], -at_targets(out["logits"]).mean(), rtol=ROUNDING)
    np.testing.assert_allclose(out["loss"], out["nll"] + LAMBDA * out["unitary_divergence"], rtol=ROUNDING)


def test_the_reference_likelihood_gives_the_originals_logits_and_loss():
    out = outputs_of(model__likelihood="reference")
    amplitude_sq = out["amp_sq"]
    logits = np.log(amplitude_sq + 1e-6 * amplitude_sq.mean(-1, keepdims=True) + 1e-30)
    np.testing.assert_allclose(out["logits"], logits, atol=ROUNDING)
    nll = np.log(np.exp(logits).sum(-1))[:, :-1] - at_targets(logits)
    np.testing.assert_allclose(out["nll"], nll.mean(), rtol=ROUNDING)
    divergence = np.mean(np.log(amplitude_sq.sum(-1)[:, :-1] + 1e-12) ** 2)
    np.testing.assert_allclose(out["unitary_divergence"], divergence, rtol=1e-5)
    loss = np.mean(-np.log(at_targets(amplitude_sq) + 1e-12)) + LAMBDA * divergence
    np.testing.assert_allclose(out["loss"], loss, rtol=1e-5)
