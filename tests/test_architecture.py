"""The worked examples of docs/architecture.md do what the page says."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import config, copied, example_in

from sem_jax.data import Batch
from sem_jax.diagnosis.run import diagnose
from sem_jax.modules.blocks import BLOCKS
from sem_jax.modules.model import init_model
from sem_jax.training.state import init_state
from sem_jax.training.step import make_train_step

PAGE = Path(__file__).parents[1] / "docs" / "architecture.md"
pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.fixture
def rotations(monkeypatch):
    """A configuration with the layer of the page."""
    monkeypatch.setattr("sem_jax.modules.blocks.BLOCKS", BLOCKS)
    names: dict = {"__name__": "worked_example"}
    exec(example_in(PAGE), names)
    yield config(
        model__vocab_size=11,
        model__blocks="mixers,rotations,propagators",
        model__layout="interleaved",
        optimizer__warmup_steps=0,  # so that the first step moves something
    )
    del BLOCKS["rotations"]


def batch_of(cfg):
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 11, (cfg.training.global_batch, cfg.data.seq_length + 1)).astype(np.int32)
    resets = np.zeros(tokens.shape, bool)
    resets[:, 0] = True
    return Batch(tokens, resets, np.ones((len(tokens), tokens.shape[1] - 1), np.float32))


@pytest.mark.slow
def test_the_added_layer_trains_decodes_and_is_diagnosed(rotations):
    state = init_state(rotations)
    assert state.model.decays()["rotations"] == {"rate": False}
    batch = batch_of(rotations)
    new, metrics = make_train_step(rotations)(copied(state), batch)
    assert int(metrics.skipped) == 0
    assert not np.array_equal(new.params["rotations"]["rate"], state.params["rotations"]["rate"])
    names = [component.name for component in diagnose(rotations, state, batch).components]
    assert names.index("mixers.0.residual") < names.index("rotations.0.turn") < names.index("propagators.0.kerr")


def test_the_added_layer_decodes_as_it_trains(rotations):
    parts = init_model(rotations.model, 0)
    model, tokens = parts.merge(), jnp.asarray(np.arange(6)[None] % 11)
    psi, _, _ = model(tokens)
    state, waves = model.initial_state(1), []
    step = jax.jit(lambda parts, token, state: parts.merge()(token, state)[:2])
    for i in range(6):
        wave, state = step(parts, tokens[:, i : i + 1], state)
        waves.append(wave)
    # A few roundings of float32 for each of the six layers of products.
    np.testing.assert_allclose(jnp.concatenate(waves, axis=1), psi, atol=2e-5)
