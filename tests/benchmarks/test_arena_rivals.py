"""The arena's rivals compute what their names say, each against an independent definition in double precision."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from arena.gpt import GPT, attention, rotary
from arena.gru import GRU
from arena.mamba2 import Mamba2
from arena.real import causal_taps
from arena.real_sem import RealMixer
from arena.rivals import BUT, RIVALS, installed
from arena.ssd import state_space
from arena.state_tracking import BUDGET
from arena.trials import configure
from flax import nnx

from sem_jax.config import MixerConfig, ModelConfig
from sem_jax.modules.block import Context
from sem_jax.modules.model import abstract_model, init_model
from tests import small

pytestmark = pytest.mark.usefixtures("quick_compilation")
# Sums of at most some 100 float32 products of order one: 100 roundings of 6e-8, with room for unlucky ones.
TOLERANCE = 2e-5
DOCUMENTS = np.array([[0, 1, 2, 0, 1, 2, 3, 0, 1, 2], [5, 6, 7, 8, 9, 10, 0, 1, 2, 3]])  # a past of 5 in the second
RNG = np.random.default_rng(0)


def normal(*shape):
    return RNG.normal(size=shape)


def single(*arrays):
    return [jnp.asarray(a, jnp.float32) for a in arrays]


def test_attention_is_the_softmax_over_the_past_of_the_same_document():
    q, k, v = normal(3, 2, 2, 10, 4)
    position = np.where(DOCUMENTS >= 5, DOCUMENTS - 5, DOCUMENTS)  # no past before the first token
    expected = np.zeros_like(v)
    for row, head, i in np.ndindex(2, 2, 10):
        past = slice(i - position[row, i], i + 1)
        weights = np.exp(k[row, head, past] @ q[row, head, i] / 2)
        expected[row, head, i] = weights @ v[row, head, past] / weights.sum()
    np.testing.assert_allclose(attention(*single(q, k, v), jnp.asarray(position)), expected, atol=TOLERANCE)


def test_rotary_scores_depend_on_the_distance_alone():
    q, k = normal(2, 1, 1, 1, 8)

    def score(i, j):
        return float(jnp.sum(rotary(*single(q), jnp.array([[i]])) * rotary(*single(k), jnp.array([[j]]))))

    # The angle of position 35 is rounded by 35·6e-8.
    assert score(5, 2) == pytest.approx(score(35, 32), abs=1e-4)
    assert abs(score(5, 2) - score(5, 4)) > 1e-2
    assert score(0, 0) == pytest.approx(float(np.sum(q * k)), abs=TOLERANCE)


@pytest.mark.parametrize("chunk", [64, 4])  # all at once, and with a last chunk that is filled up
def test_ssd_is_its_recurrence(chunk, monkeypatch):
    monkeypatch.setattr("arena.ssd.CHUNK", chunk)
    q, k = normal(2, 2, 10, 3)
    x, h0, log_decay = normal(2, 10, 2, 4), normal(2, 2, 3, 4), -np.abs(normal(2, 10, 2))
    expected, h = np.zeros_like(x), h0.copy()
    for t in range(10):
        h[DOCUMENTS[:, t] == 0] = 0
        h = np.exp(log_decay[:, t])[..., None, None] * h + np.einsum("bn,bhp->bhnp", k[:, t], x[:, t])
        expected[:, t] = np.einsum("bhnp,bn->bhp", h, q[:, t])
    y, after = state_space(*single(q, k, x, log_decay, h0), jnp.asarray(DOCUMENTS))
    np.testing.assert_allclose(y, expected, atol=TOLERANCE)
    np.testing.assert_allclose(after, h, atol=TOLERANCE)


def test_taps_are_a_sum_over_the_last_inputs_of_the_document():
    x, taps, kernel = normal(2, 10, 3), normal(2, 3, 3), normal(4, 3)
    extended, expected = np.concatenate([taps, x], axis=1), np.zeros_like(x)
    for row, t, back in np.ndindex(2, 10, 4):
        if DOCUMENTS[row, t] >= back:
            expected[row, t] += extended[row, t + 3 - back] * kernel[3 - back]
    y, after = causal_taps(*single(x, taps, kernel), jnp.asarray(DOCUMENTS))
    np.testing.assert_allclose(y, expected, atol=TOLERANCE)
    np.testing.assert_array_equal(after, single(x)[0][:, -3:])


def block(kind):
    rival = RIVALS[kind]
    config = small.config(
        model__vocab_size=11,
        **{f"model__{name.replace('.', '__')}": v for name, v in rival.fields.items() if name != "blocks"},
    )
    return rival.blocks["layers"](config.model, nnx.Rngs(params=0), 0)


def test_gru_is_that_of_torch():
    unit = block("gru")
    theirs = torch.nn.GRU(16, 16, batch_first=True).double()
    for of, name in (("input", "ih"), ("state", "hh")):
        parts = [getattr(unit, f"{gate}_{of}") for gate in GRU.GATES]
        for part in parts:
            part.bias[...] = jnp.asarray(normal(16), jnp.float32)
        with torch.no_grad():
            for what in ("weight", "bias"):
                whole = np.concatenate([np.asarray(getattr(part, what)[...], np.float64) for part in parts])
                getattr(theirs, f"{what}_{name}_l0").copy_(torch.tensor(whole))
    x, h0 = normal(2, 10, 16), normal(2, 16)
    expected, last = theirs(torch.tensor(x), torch.tensor(h0)[None])
    y, after = unit.unit(*single(x, h0), 5 + jnp.zeros((2, 10), int))
    np.testing.assert_allclose(y, expected.detach(), atol=TOLERANCE)
    np.testing.assert_allclose(after, last[0].detach(), atol=TOLERANCE)


@pytest.mark.parametrize(("kind", "of"), [("gpt", GPT), ("mamba2", Mamba2), ("gru", GRU), ("sem_real", RealMixer)])
def test_a_block_sees_no_future_and_goes_on_from_its_state(kind, of):
    layer = block(kind)
    assert isinstance(layer, of)
    run = jax.jit(lambda x, state, position: layer(x, state, Context(position))[:2])
    fresh = layer.initial_state(1)
    (x,) = single(normal(1, 10, 16))
    position = jnp.asarray([[0, 1, 2, 3, 0, 1, 2, 3, 4, 5]])
    whole = run(x, fresh, position)[0]
    changed = run(x.at[:, 6:].set(7.0), fresh, position)[0]
    np.testing.assert_allclose(changed[:, :6], whole[:, :6], atol=TOLERANCE)
    assert float(jnp.max(jnp.abs(changed[:, 6] - whole[:, 6]))) > 1e-2
    before = run(x.at[:, :4].set(7.0), fresh, position)[0]
    np.testing.assert_allclose(before[:, 4:], whole[:, 4:], atol=TOLERANCE)  # another document
    first, state = run(x[:, :5], fresh, position[:, :5])
    second, _ = run(x[:, 5:], state, position[:, 5:])
    np.testing.assert_allclose(jnp.concatenate([first, second], axis=1), whole, atol=TOLERANCE)
    alone, _ = run(x[:, 5:], run(0 * x[:, :5], fresh, position[:, :5])[1], position[:, 5:])
    assert float(jnp.max(jnp.abs(alone - second))) > 1e-3  # the past of the same document counts


def test_a_tagged_model_reads_inputs_and_is_asked_for_answers():
    config = small.config(model__vocab_size=11, model__blocks="layers").model
    inputs, answers = RNG.integers(11, size=(2, 2, 6))
    tokens = jnp.asarray(inputs + 11 * RNG.integers(11, size=(2, 6)))
    with installed(RIVALS["gru"], tags=11):
        model = init_model(config, 0).merge()
        psi, plain = (model(each)[0] for each in (tokens, jnp.asarray(inputs)))
    np.testing.assert_array_equal(psi, plain)
    nats = -model.readout.target_log_prob(psi, jnp.asarray(RNG.integers(11, size=(2, 6)) + 11 * answers))[0]
    expected = -jax.nn.log_softmax(psi @ model.readout.inner.weight[...].T)  # the bias is zero at first
    np.testing.assert_allclose(nats, np.take_along_axis(expected, answers[..., None], -1)[..., 0], atol=TOLERANCE)


def test_the_power_readout_is_the_born_rule_with_every_probability_to_the_fourth_power():
    config = small.config(model__vocab_size=11, model__likelihood="born").model
    with installed(RIVALS["sem_power"]):
        readout = init_model(config, 0).merge().readout
    readout.bias[...] = jnp.asarray(RNG.normal(size=11), jnp.float32)
    psi = RNG.normal(size=(2, 5, 16)) + 1j * RNG.normal(size=(2, 5, 16))
    amplitudes = psi @ np.asarray(readout.weight[...], np.complex128).T
    weights = np.exp(np.asarray(readout.bias[...], np.float64)) * np.abs(amplitudes) ** 8
    z = weights.sum(axis=-1, keepdims=True)
    expected = np.log((weights / z + config.born_floor / 11) / (1 + config.born_floor))
    # An eighth power has 8 times the error of a sum of 16 products, 8·16·6e-8, more where their sum is small.
    np.testing.assert_allclose(readout.log_probs(jnp.asarray(psi, jnp.complex64)), expected, atol=1e-4)
    targets = RNG.integers(11, size=(2, 5))
    found, log_z = readout.target_log_prob(jnp.asarray(psi, jnp.complex64), jnp.asarray(targets))
    np.testing.assert_allclose(found, np.take_along_axis(expected, targets[..., None], -1)[..., 0], atol=1e-4)
    np.testing.assert_allclose(log_z, np.log(z[..., 0]), atol=1e-5)


def test_what_the_controls_lack():
    config = small.config(model__vocab_size=11).model
    with installed(RIVALS["sem_no_rotation"]):
        parts = abstract_model(config)
    assert "phase" not in parts.params["mixers"]["ssm"]
    assert "phase" in abstract_model(config).params["mixers"]["ssm"]
    for name, turns in (("sem_position", True), ("sem", False)):
        buffers = abstract_model(configure(name, BUDGET, layers=1, rate=1e-3, dim=16).model).buffers
        assert ("frequency" in buffers.get("encoder", {})) == turns


@pytest.mark.parametrize("name", BUT)
def test_a_start_without_one_part_has_the_others(name):
    heads = 64
    config = ModelConfig(hidden_dim=heads, mixer=MixerConfig(num_heads=heads, state_dim=8))
    mixer = RIVALS[name].blocks["mixers"](config, nnx.Rngs(params=0), 0)
    ssm, kernel = mixer.ssm, mixer.conv.kernel[...]
    query, key = np.split(np.asarray(ssm.qk_proj[...]), 2, axis=-2)
    found = {
        "qk_proj": np.array_equal(query, key),
        "qk_bias": not np.any(ssm.qk_bias[...]),
        "phase": not np.any(ssm.phase[::2]),
        "decay": np.max(jax.nn.softplus(ssm.decay[::2])) < 0.11,
        "taps": np.array_equal(kernel[-2], kernel[-1]),
    }
    assert {part for part, is_there in found.items() if not is_there} == {name.removeprefix("sem_unbounded_but_")}
    assert np.all(ssm.phase[1::2])
    assert np.max(jax.nn.softplus(ssm.decay[1::2])) > 0.4
