"""Spikes are skipped, never remembered, and after a while believed."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sem_jax.config import OptimizerConfig
from sem_jax.optim import Reason, finite_guard, make_optimizer

WINDOW, PATIENCE = 16, 3
PARAMS = {"w": jnp.ones(4)}


def guard(zscore=8.0):
    return finite_guard(
        optax.scale(-1.0), spike_zscore=zscore, spike_window=WINDOW, spike_patience=PATIENCE, regrow_steps=10**6
    )


UPDATE = jax.jit(guard().update)


def take(state, loss, norm=2.0):
    """The state after a step whose gradient has this norm."""
    return UPDATE({"w": jnp.full(4, norm / 2)}, state, PARAMS, loss=jnp.float32(loss))[1]


def ordinary(seed, count=WINDOW):
    """Losses of 3 ± .1 and norms that vary by 10 %, both normal."""
    rng = np.random.default_rng(seed)
    return list(zip(3 + 0.1 * rng.normal(size=count), 2 * np.exp(0.1 * rng.normal(size=count)), strict=True))


@pytest.fixture(scope="module")
def full():
    state = guard().init(PARAMS)
    for loss, norm in ordinary(0):
        state = take(state, loss, norm)
    return state


def test_ordinary_steps_are_no_spikes(full):
    state = full
    for loss, norm in ordinary(1, 200):
        state = take(state, loss, norm)
    assert state.skipped == 0


@pytest.mark.parametrize(("loss", "norm"), [(6.0, 2.0), (3.0, 20.0)], ids=["loss", "norm"])
def test_a_spike_is_skipped_and_leaves_scale_and_window_alone(full, loss, norm):
    updates, after = UPDATE({"w": jnp.full(4, norm / 2)}, full, PARAMS, loss=jnp.float32(loss))
    np.testing.assert_array_equal(updates["w"], 0)
    assert (after.reason, after.leaf, after.skipped, after.consecutive) == (Reason.SPIKE, -1, 1, 1)
    assert (after.lr_scale, after.clean) == (full.lr_scale, full.clean)
    np.testing.assert_array_equal(after.spikes.window, full.spikes.window)
    assert (after.spikes.held, after.spikes.streak) == (full.spikes.held, 1)
    assert take(after, 3.0).spikes.streak == 0


@pytest.mark.parametrize(("loss", "norm"), [(2.0, 2.0), (3.0, 0.01), (0.0, 0.0)])
def test_whatever_is_lower_is_no_spike(full, loss, norm):
    assert take(full, loss, norm).consecutive == 0


def test_the_limit_is_the_zscore_of_median_and_median_absolute_deviation(full):
    losses = np.array([loss for loss, _ in ordinary(0)])
    median = np.median(losses)
    limit = median + 8 * 1.4826 * np.median(np.abs(losses - median))
    assert take(full, limit - 1e-3).consecutive == 0
    assert take(full, limit + 1e-3).reason == Reason.SPIKE


def test_a_bad_value_never_enters_the_window(full):
    state = full
    for loss, norm in [(np.nan, 2.0), (3.0, np.inf), (3.0, np.nan), (np.inf, 2.0)]:
        state = take(state, loss, norm)
    assert (state.skipped, state.consecutive) == (4, 4)
    for old, new in zip(full.spikes, state.spikes, strict=True):
        np.testing.assert_array_equal(old, new)
    assert state.lr_scale == 0.5**4


def test_nothing_is_judged_before_the_window_is_full():
    state = guard().init(PARAMS)
    for loss, _ in ordinary(0, WINDOW - 1):
        state = take(state, loss)
    assert take(state, 100.0).consecutive == 0


def test_a_new_level_is_believed_after_the_patience_and_learned_afresh(full):
    state = full
    for number in range(PATIENCE):
        state = take(state, 6.0)
        assert state.consecutive == number + 1
    for number in range(WINDOW):
        state = take(state, 6.0)
        assert (state.consecutive, state.spikes.held) == (0, number + 1)
    assert take(state, 6.0).consecutive == 0
    assert take(state, 9.0).reason == Reason.SPIKE


def test_a_window_of_equal_values_allows_one_percent_a_standard_deviation():
    state = guard().init(PARAMS)
    for _ in range(WINDOW):
        state = take(state, 3.0)
    assert take(state, 3.0 * 1.07).consecutive == 0
    assert take(state, 3.0 * 1.09).reason == Reason.SPIKE


def test_the_configuration_sets_it():
    config = OptimizerConfig(spike_zscore=8.0, spike_window=4, spike_patience=2)
    optimizer = make_optimizer(config, max_steps=1000, seed=0)
    update, state, reasons = jax.jit(optimizer.update), optimizer.init(PARAMS), []
    for number, loss in enumerate([3.0] * 4 + [9.0] * 3):
        _, state = update(PARAMS, state, PARAMS, loss=loss, step=number)
        reasons.append(int(state.consecutive))
    assert reasons == [0, 0, 0, 0, 1, 2, 0]


def test_switched_off_it_costs_neither_state_nor_work():
    off, on = guard(zscore=0.0), guard()
    assert off.init(PARAMS).spikes is None

    def program(optimizer):
        return str(jax.make_jaxpr(optimizer.update)(PARAMS, optimizer.init(PARAMS), PARAMS, loss=1.0))

    assert "sort" in program(on)
    assert "sort" not in program(off)
    assert f"[{WINDOW},2]" not in program(off)
