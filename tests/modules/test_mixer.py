from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from sem_jax.config import MixerConfig
from sem_jax.modules.linear import Linear
from sem_jax.modules.mixer import CausalConv, FixedSSM, SpinorGate

SEEDS = st.integers(0, 2**31 - 1)
BATCH, LENGTH, DIM = 2, 6, 4

pytestmark = pytest.mark.usefixtures("x64", "quick_compilation")


def complex_array(rng, *shape):
    return rng.normal(size=shape) + 1j * rng.normal(size=shape)


@functools.cache
def structure(create):
    """(graphdef, shapes) of a module, without computing its initial values."""
    graphdefs = []

    def split(key):
        graphdef, state = nnx.split(create(nnx.Rngs(params=key)))
        graphdefs.append(graphdef)
        return nnx.to_pure_dict(state)

    shapes = jax.eval_shape(split, jax.random.key(0))
    return graphdefs[0], shapes


def random_params(create, rng):
    def draw(leaf):
        return complex_array(rng, *leaf.shape) if np.iscomplexobj(leaf) else rng.normal(size=leaf.shape)

    return jax.tree.map(draw, structure(create)[1])


@functools.cache
def compiled(create):
    graphdef, _ = structure(create)
    return jax.jit(lambda params, *inputs: nnx.merge(graphdef, params)(*inputs))


def random_positions(rng):
    """Positions of two rows, the second in the middle of a document, both with a new document inside."""
    rows = []
    for start, reset in ((0, int(rng.integers(1, LENGTH))), (5, int(rng.integers(0, LENGTH)))):
        row = start + np.arange(LENGTH)
        row[reset:] = np.arange(LENGTH - reset)
        rows.append(row)
    return np.array(rows, np.int32)


def linear(rngs):
    return Linear(2 * DIM, 3, rngs=rngs)


@given(seed=SEEDS)
def test_a_linear_map_of_parts_reads_real_parts_before_imaginary_parts(seed):
    rng = np.random.default_rng(seed)
    params, z = random_params(linear, rng), complex_array(rng, 2, DIM)
    expected = np.concatenate([z.real, z.imag], axis=-1) @ params["weight"].T + params["bias"]
    actual = nnx.merge(structure(linear)[0], params).of_parts(z)
    np.testing.assert_allclose(actual, expected, atol=1e-13)


def spinor_gate(rngs):
    return SpinorGate(DIM, MixerConfig(block_size=2), rngs)


def test_an_open_spinor_gate_rotates_each_block_and_a_shut_one_passes():
    rng = np.random.default_rng(0)
    params, x = random_params(spinor_gate, rng), complex_array(rng, BATCH, LENGTH, DIM)
    blocks = np.zeros((DIM, DIM), complex)
    for n, block in enumerate(params["rotation"]):
        blocks[2 * n : 2 * n + 2, 2 * n : 2 * n + 2] = block
    params["gate_proj"]["weight"][:] = 0
    for bias, expected in ((50.0, x @ blocks.T), (-50.0, x)):
        params["gate_proj"]["bias"][:] = bias  # σ(±85) is 1 or 0 to rounding
        np.testing.assert_allclose(compiled(spinor_gate)(params, x), expected, atol=1e-14)


def conv(rngs):
    return CausalConv(DIM, 3, rngs)


@given(seed=SEEDS)
def test_the_convolution_is_its_sum_over_taps_of_the_same_document(seed):
    rng = np.random.default_rng(seed)
    params, x, taps = (
        random_params(conv, rng),
        complex_array(rng, BATCH, LENGTH, DIM),
        complex_array(rng, BATCH, 2, DIM),
    )
    position = random_positions(rng)
    out, last = compiled(conv)(params, x, taps, position)
    before = np.concatenate([taps, x], axis=1)
    for b in range(BATCH):
        for t in range(LENGTH):
            expected = params["bias"].copy()
            for lag in range(min(2, position[b, t]) + 1):
                past = before[b, 2 + t - lag]
                parts = np.stack([past.real, past.imag], axis=-1)
                expected += np.einsum("doi,di->do", params["kernel"][2 - lag], parts)
            np.testing.assert_allclose(out[b, t], expected[:, 0] + 1j * expected[:, 1], atol=1e-13)
    np.testing.assert_array_equal(last, x[:, -2:])


def ssm_with(**options):
    config = MixerConfig(num_groups=2, state_dim=3, **options)
    return lambda rngs: FixedSSM(DIM, config, rngs)


SSM = {"dt": ssm_with(input_scale="dt"), "unit_variance": ssm_with(input_scale="unit_variance")}


def numpy_ssm(params, x, h, position, input_scale):
    """The recurrence, one group and one step at a time."""
    y = np.zeros_like(x)
    width = DIM // 2
    h = h.copy()
    for b in range(BATCH):
        for t in range(LENGTH):
            for g in range(2):
                x_t = x[b, t, g * width : (g + 1) * width]
                steps = params["dt_proj"]["weight"] @ np.concatenate([x_t.real, x_t.imag]) + params["dt_proj"]["bias"]
                dt, omega = np.clip(np.exp(steps), 1e-4, 2)
                a = np.exp(-dt * np.log1p(np.exp(params["decay"][g]))) * np.exp(1j * omega * params["phase"][g])
                scale = dt if input_scale == "dt" else np.sqrt(1 - np.abs(a) ** 2)
                past = 0 if position[b, t] == 0 else h[b, g]
                h[b, g] = a * past + scale * (params["in_proj"] @ x_t)
                y[b, t, g * width : (g + 1) * width] = params["out_proj"] @ h[b, g]
    return y, h


@pytest.mark.parametrize("input_scale", SSM)
@given(seed=SEEDS)
@settings(max_examples=8)
def test_the_state_space_is_its_recurrence(input_scale, seed):
    rng = np.random.default_rng(seed)
    create = SSM[input_scale]
    params, x, h = random_params(create, rng), complex_array(rng, BATCH, LENGTH, DIM), complex_array(rng, BATCH, 2, 3)
    x *= 3  # both ends of the clip are reached
    position = random_positions(rng)
    y, last = compiled(create)(params, x, h, position)
    expected, expected_last = numpy_ssm(params, x, h, position, input_scale)
    np.testing.assert_allclose(y, expected, atol=1e-11)
    np.testing.assert_allclose(last, expected_last, atol=1e-11)


def test_an_overflowing_step_size_leaves_the_gradient_finite():
    create = SSM["dt"]
    graphdef, _ = structure(create)
    rng = np.random.default_rng(0)
    params = random_params(create, rng)
    params["dt_proj"]["bias"][:] = 1e4  # exp of it is infinite
    x = complex_array(rng, 1, 2, DIM)

    def loss(params):
        y, _ = nnx.merge(graphdef, params)(x, jnp.zeros((1, 2, 3), complex), jnp.arange(2)[None])
        return jnp.sum(jnp.square(y.real))

    gradient = jax.jit(jax.grad(loss))(params)
    assert all(np.all(np.isfinite(g)) for g in jax.tree.leaves(gradient))
    assert not np.any(gradient["dt_proj"]["bias"])  # beyond the clip


def test_the_ring_starts_with_time_constants_spread_over_its_range():
    slowest = 64.0
    config = MixerConfig(num_groups=2, state_dim=8, ssm_init="ring", ring_max_timescale=slowest)
    ssm = FixedSSM(DIM, config, nnx.Rngs(0))
    timescale = 1 / np.log1p(np.exp(np.asarray(ssm.decay[...])))
    # One time constant in each of the eight equal intervals of log time.
    np.testing.assert_array_equal(np.floor(8 * np.log(timescale) / np.log(slowest)), np.tile(np.arange(8), (2, 1)))
    assert np.all(np.abs(ssm.phase[...]) <= np.pi / np.sqrt(timescale))


def test_the_fast_start_forgets_within_a_few_tokens():
    ssm = FixedSSM(DIM, MixerConfig(num_groups=2, state_dim=8), nnx.Rngs(0))
    modulus = np.exp(-np.log1p(np.exp(np.asarray(ssm.decay[...]))))
    assert 0.25 < modulus.mean() < 0.4  # at δ = 1
