from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest
from small_models import random_parts, small_config

pytestmark = pytest.mark.usefixtures("x64", "quick_compilation")


def test_the_target_is_one_of_all_tokens_and_the_floor_is_that_of_the_configuration():
    floor = 0.2
    readout = random_parts(dataclasses.replace(small_config("none"), born_floor=floor)).merge().readout
    rng = np.random.default_rng(0)
    psi, targets = rng.normal(size=(2, 3, 8)) + 1j * rng.normal(size=(2, 3, 8)), rng.integers(0, 12, size=(2, 3))
    everything, (target, _) = jax.jit(lambda: (readout.log_probs(psi), readout.target_log_prob(psi, targets)))()
    np.testing.assert_allclose(
        target, np.take_along_axis(np.asarray(everything), targets[..., None], -1)[..., 0], rtol=1e-12
    )
    np.testing.assert_allclose(np.exp(everything).sum(-1), 1, rtol=1e-13)
    assert np.exp(everything).min() > floor / 12 / (1 + floor)
