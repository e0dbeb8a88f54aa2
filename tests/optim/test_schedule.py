import json

import golden_models
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sem_jax.config import OptimizerConfig
from sem_jax.optim import make_schedule, warmup_cosine, warmup_stable_decay


def test_equals_the_reference_step_by_step():
    golden = golden_models.load("wsd")
    recipe = json.loads(str(golden["config"]))
    schedule = warmup_stable_decay(
        learning_rate=recipe["lr"],
        warmup_steps=recipe["warmup"],
        decay_steps=recipe["decay"],
        max_steps=recipe["begin_decay_at"] + recipe["decay"],
        lr_min_ratio=recipe["min_ratio"],
    )
    rates = jax.vmap(schedule)(jnp.arange(len(golden["lr"])))
    np.testing.assert_allclose(rates, golden["lr"], rtol=1e-6)


def test_passes_through_its_corners():
    schedule = jax.jit(warmup_stable_decay(1e-2, warmup_steps=10, decay_steps=20, max_steps=100, lr_min_ratio=0.1))
    corners = {0: 0.0, 5: 5e-3, 10: 1e-2, 80: 1e-2, 90: 5.5e-3, 100: 1e-3, 1000: 1e-3}
    for step, rate in corners.items():
        np.testing.assert_allclose(schedule(jnp.int32(step)), rate, rtol=1e-6)


def test_without_warmup_and_decay_it_is_constant():
    schedule = warmup_stable_decay(1e-2, warmup_steps=0, decay_steps=0, max_steps=10, lr_min_ratio=0.1)
    assert {float(schedule(step)) for step in range(20)} == {float(np.float32(1e-2))}


@settings(max_examples=30, deadline=None)
@given(warmup=st.integers(0, 20), plateau=st.integers(0, 20), decay=st.integers(0, 20), ratio=st.floats(0, 1))
def test_rises_once_and_falls_once(warmup, plateau, decay, ratio):
    schedule = warmup_stable_decay(1.0, warmup, decay, warmup + plateau + decay, ratio)
    rates, rounding = np.asarray(schedule(jnp.arange(64))), 1.2e-7
    changes = np.diff(rates)
    assert (changes[:warmup] > 0).all()
    assert (changes[warmup : warmup + plateau] == 0).all()
    assert (changes[warmup + plateau :] <= rounding).all()
    assert rates[-1] == pytest.approx(ratio if decay else 1.0, abs=rounding)


@pytest.mark.parametrize(("warmup", "decay"), [(60, 50), (-1, 10), (10, -1)])
def test_phases_that_do_not_fit_raise(warmup, decay):
    with pytest.raises(ValueError, match="max_steps = 100"):
        warmup_stable_decay(1e-3, warmup, decay, max_steps=100, lr_min_ratio=0.1)


def test_the_cosine_passes_through_its_corners():
    schedule = jax.jit(warmup_cosine(1e-2, warmup_steps=10, max_steps=110, lr_min_ratio=0.1))
    middle = 1e-2 * (0.1 + 0.9 / 2)
    quarter = 1e-2 * (0.1 + 0.9 * (1 + np.sqrt(0.5)) / 2)
    for step, rate in {0: 0.0, 5: 5e-3, 10: 1e-2, 35: quarter, 60: middle, 110: 1e-3, 1000: 1e-3}.items():
        np.testing.assert_allclose(schedule(jnp.int32(step)), rate, rtol=1e-6)
    assert warmup_cosine(1e-2, warmup_steps=0, max_steps=100, lr_min_ratio=0.1)(0) == np.float32(1e-2)


@settings(max_examples=30, deadline=None)
@given(warmup=st.integers(0, 20), cosine=st.integers(1, 20), ratio=st.floats(0, 1))
def test_the_cosine_is_the_papers_and_falls_at_every_step(warmup, cosine, ratio):
    rates = np.asarray(warmup_cosine(1.0, warmup, warmup + cosine, ratio)(jnp.arange(64)))
    t = np.arange(64)
    rise = t / max(warmup, 1)
    fall = ratio + (1 - ratio) * np.cos(np.pi / 2 * np.minimum((t - warmup) / cosine, 1)) ** 2  # (1 + cos x)/2
    # Rates are at most 1; the argument of the cosine, its value and three products round by 6e-8 each.
    np.testing.assert_allclose(rates, np.where(t < warmup, rise, fall), atol=6e-7)
    assert (np.diff(rates[: warmup + 1]) > 0).all()
    assert (np.diff(rates[warmup:]) <= 1.2e-7).all()


@pytest.mark.parametrize("warmup", [-1, 100, 101])
def test_a_warmup_that_leaves_no_cosine_raises(warmup):
    with pytest.raises(ValueError, match=rf"warmup_steps = {warmup} .*max_steps = 100"):
        warmup_cosine(1e-3, warmup, max_steps=100, lr_min_ratio=0.1)


def test_the_configuration_chooses_the_schedule():
    settings = {"learning_rate": 1.0, "warmup_steps": 10, "decay_steps": 20, "lr_min_ratio": 0.0}
    rates = {name: make_schedule(OptimizerConfig(schedule=name, **settings), 110)(60) for name in ("wsd", "cosine")}
    np.testing.assert_allclose([rates["wsd"], rates["cosine"]], [1.0, 0.5], rtol=1e-6)
