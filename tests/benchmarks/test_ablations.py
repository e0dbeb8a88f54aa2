"""Ablations against what they say they are: recurrences, readouts and loops written out."""

import ablations
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ablations import Trapezoid
from flax import nnx
from small import complex_normal, config

from sem_jax.modules import model as model_module
from sem_jax.modules.block import Context
from sem_jax.modules.blocks import BLOCKS
from sem_jax.modules.model import init_model

BATCH, LENGTH, DIM = 2, 7, 16
pytestmark = pytest.mark.usefixtures("x64", "quick_compilation")


@pytest.mark.slow
def test_the_trapezoid_is_its_recurrence_over_documents():
    mixer = config().model.mixer
    ssm = Trapezoid.SSM(DIM, mixer, nnx.Rngs(params=0))
    x = complex_normal(np.random.default_rng(0), BATCH, LENGTH, DIM)
    position = np.array([[0, 1, 2, 3, 4, 5, 6], [0, 1, 2, 0, 1, 2, 3]])
    y, _ = ssm(x, None, position)

    q, k = map(np.asarray, ssm.queries_and_keys(x))
    dt, omega = map(np.asarray, ssm.step_sizes(x))
    share = np.asarray(jax.nn.sigmoid(ssm.share.of_parts(x)))
    decay, phase = np.asarray(jax.nn.softplus(ssm.decay[...])), np.asarray(ssm.phase[...])
    channels = x.reshape(BATCH, LENGTH, mixer.num_heads, -1)
    expected = np.empty_like(channels)
    for b, head in np.ndindex(BATCH, mixer.num_heads):
        state = before = np.zeros((mixer.state_dim, channels.shape[-1]), complex)
        for t in range(LENGTH):
            if position[b, t] == 0:
                state, before = 0 * state, 0 * before
            turn = np.exp(-dt[b, t, head] * decay[head] + 1j * omega[b, t, head] * phase[head])[:, None]
            new, part = np.outer(k[b, t], channels[b, t, head]), share[b, t, head]
            state = turn * state + dt[b, t, head] * ((1 - part) * turn * before + part * new)
            expected[b, t, head] = q[b, t].conj() @ state / mixer.state_dim
            before = new
    expected = expected.reshape(x.shape) + np.asarray(ssm.skip[...]) * x
    # Each output is a sum of at most LENGTH·state_dim terms; float32 parameters are exact in double precision.
    np.testing.assert_allclose(y, expected, rtol=0, atol=LENGTH * mixer.state_dim * 2.0**-52 * np.abs(expected).max())


def test_a_capped_readout_is_the_softmax_of_capped_logits():
    readout = ablations.Capped(config(model__vocab_size=9).model, nnx.Rngs(params=0))
    rng = np.random.default_rng(1)
    psi, targets = 200 * complex_normal(rng, 5, DIM), rng.integers(0, 9, 5)
    logits = (psi @ np.asarray(readout.weight[...]).T).real
    assert np.abs(logits).max() > ablations.Capped.CAP  # or nothing would be capped
    capped = 15 * np.tanh(logits / 15)
    expected = capped - np.log(np.exp(capped).sum(axis=-1, keepdims=True))
    np.testing.assert_allclose(readout.log_probs(psi), expected, atol=1e-12)
    log_p, log_z = readout.target_log_prob(psi, targets)
    np.testing.assert_allclose(log_p, expected[np.arange(5), targets], atol=1e-12)
    np.testing.assert_allclose(log_z, np.log(np.exp(capped).sum(axis=-1)), atol=1e-12)


def test_a_tied_readout_reads_with_the_conjugate_of_the_embedding():
    tied = ablations.Tied(config(model__vocab_size=9).model, nnx.Rngs(params=0))
    embedding, gain = (np.asarray(x[...]) for x in (tied.encoder.embedding, tied.readout.gain))
    psi = complex_normal(np.random.default_rng(1), 5, DIM)
    logits = (psi @ (gain * embedding.conj()).T).real
    expected = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    np.testing.assert_allclose(tied.readout.log_probs(psi), expected, atol=1e-12)
    paths = [jax.tree_util.keystr(path) for path, _ in nnx.to_flat_state(nnx.split(tied, nnx.Param, ...)[1])]
    assert sum("embedding" in path for path in paths) == 1  # one parameter, which both read


@pytest.mark.parametrize("position_phase", [False, True])
def test_an_embedding_with_phases_starts_as_the_wave_that_it_is(position_phase):
    sizes = config(model__vocab_size=9, model__encoder__transport="none", model__encoder__position_phase=position_phase)
    encoder = ablations.ComplexEmbedding(sizes.model, nnx.Rngs(params=0))
    tokens, position = np.array([[3, 1, 3]]), np.arange(3)[None]
    psi, _ = encoder(tokens, encoder.initial_state(1), Context(position))
    phase = position_phase * position[..., None] * 10000.0 ** (-np.arange(DIM) / DIM)
    np.testing.assert_allclose(psi, np.asarray(encoder.embedding[...])[tokens] * np.exp(1j * phase), atol=1e-12)


@pytest.mark.slow
def test_layers_in_a_loop_of_python_are_those_of_the_scan(monkeypatch):
    """With the shares of the first layer's values at 0 the ablation is the default model, and otherwise it is not."""
    sizes = config(model__num_layers=3, model__vocab_size=9).model
    tokens = np.random.default_rng(0).integers(0, 9, (2, 7))
    default = init_model(sizes, 0)
    expected = default.merge()(tokens)[0]
    monkeypatch.setattr(model_module, "scan_layers", ablations.unrolled)
    np.testing.assert_allclose(default.merge()(tokens)[0], expected, atol=1e-12)
    monkeypatch.setitem(BLOCKS, "mixers", ablations.FirstValues)
    parts = init_model(sizes, 0)
    shared = parts.merge()(tokens)[0]
    assert np.abs(shared - expected).max() > 1e-3
    ssm = parts.params["mixers"]["ssm"]
    ssm["share"] = jnp.zeros_like(ssm["share"])
    np.testing.assert_allclose(parts.merge()(tokens)[0], expected, atol=1e-12)
