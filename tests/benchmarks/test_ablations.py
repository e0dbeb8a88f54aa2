"""The trapezoidal mixer of the ablations against its recurrence, step by step."""

import jax
import numpy as np
import pytest
from ablations import Trapezoid
from flax import nnx
from small import complex_normal, config

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
