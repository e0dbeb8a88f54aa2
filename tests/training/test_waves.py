"""What an evaluation tells of the wave is what a diagnosis finds in the same pass."""

import jax.numpy as jnp
import numpy as np
import pytest
from small import config

from sem_jax.core.statistics import describe
from sem_jax.modules.model import init_model
from sem_jax.modules.probe import Observer
from sem_jax.training.waves import WaveObserver


class Everything(Observer):
    """Keeps every part's output."""

    def probe(self, slots):
        values = {}

        def keep(name, value):
            values[name] = value
            return value

        keep.values = values
        return keep

    def seen(self, probe, module, state, context):
        return probe.values


@pytest.mark.parametrize("layout", ["interleaved", pytest.param("mixers_first", marks=pytest.mark.slow)])
def test_power_and_coherence_are_those_of_the_wave_after_each_layer(quick_compilation, layout):
    model_config = config(model__num_layers=2, model__layout=layout, model__vocab_size=11).model
    model = init_model(model_config, 0).merge()
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 11, (2, 5)))
    waves = model(tokens, observer=WaveObserver())[2].seen
    outputs = model(tokens, observer=Everything())[2].seen
    for kind, part in [("mixers", "residual"), ("propagators", "cayley")]:
        for layer in range(2):
            found = describe(outputs[kind][part][layer])
            # The same formula over the same numbers, compiled twice: sums of 160 terms.
            np.testing.assert_allclose(waves[kind].power[layer], found.rms**2, rtol=1e-5)
            np.testing.assert_allclose(waves[kind].coherence[layer], found.coherence, rtol=1e-5)
    assert not np.isclose(waves["mixers"].power[0], waves["mixers"].power[1])
