"""Fifty whole train steps against the reference's loss and optimizer: without noise, and with the same noise.

Rounding grows along a run: an error in a parameter moves later gradients, and Adam divides small gradients by their own
size. What it may do is read off the reference: run in the precision in question and with all parameters off by a
rounding before every step, it is compared with itself in float64. Another order of the same operations errs by a small
multiple of that.
"""

from __future__ import annotations

import functools

import jax
import numpy as np
import pytest
from torch_reference import warmup_stable_decay

from .comparison import FLOAT32, FLOAT64, deviation
from .training import RUNS, STEPS, Precision, Run, train_ours, train_theirs

MULTIPLE = 10

pytestmark = pytest.mark.usefixtures("quick_compilation")
every_run = pytest.mark.parametrize(
    "run", [pytest.param(run, id=name, marks=[pytest.mark.slow] * (name != "default")) for name, run in RUNS.items()]
)


@functools.cache
def ours_with_rates(run: Run, dtype: np.dtype):
    with jax.enable_x64(dtype == FLOAT64):
        return train_ours(run, dtype)


def ratios_to_estimate(run: Run, dtype: np.dtype, rate_error: float = 0.0) -> dict[str, float]:
    """Deviation from the reference in float64, in units of what rounding may do."""
    ours, rates = ours_with_rates(run, dtype)
    unit = float(np.finfo(dtype).eps) / 2
    truth = train_theirs(run, rates, Precision(FLOAT64, noise_drawn_in=dtype))
    off_rates = [rate * (1 + rate_error) for rate in rates]
    rounded = train_theirs(run, off_rates, Precision(dtype, noise_drawn_in=dtype), unit)
    assert ours.keys() == truth.keys()
    size = {name: float(np.max(np.abs(x))) for name, x in truth.items()}
    # What should stay zero has an estimate of zero, and a ratio beyond all bounds where it does not.
    tiny = float(np.finfo(dtype).tiny)
    estimate = {name: deviation(rounded[name], x) + unit * size[name] + tiny for name, x in truth.items()}
    return {name: deviation(ours[name], x) / estimate[name] for name, x in truth.items()}


@every_run
def test_in_double_precision_the_runs_stay_together(run):
    ratios = ratios_to_estimate(run, FLOAT64)
    assert {name: ratio for name, ratio in ratios.items() if not ratio < MULTIPLE} == {}


@pytest.mark.slow
def test_in_single_precision_the_runs_part_no_further_than_rounding_takes_them():
    run = RUNS["default"]
    # Adam's 1 − β2^t is about t·(1 − β2), so that float32's error in β2 appears in v̂ divided by 1 − β2, and half of
    # that in every step; the reference takes it in double precision.
    b2 = run.config.optimizer.b2
    rate_error = abs(float(np.float32(b2)) - b2) / (1 - b2) / 2
    ratios = ratios_to_estimate(run, FLOAT32, rate_error)
    assert {name: ratio for name, ratio in ratios.items() if not ratio < MULTIPLE} == {}


@every_run
def test_the_learning_rates_are_those_of_the_schedule(run):
    optimizer = run.config.optimizer
    schedule = warmup_stable_decay(
        optimizer.learning_rate,
        optimizer.warmup_steps,
        optimizer.decay_steps,
        STEPS - optimizer.decay_steps,
        optimizer.lr_min_ratio,
    )
    # The runs above are given sem_jax's rates, because it holds them in float32 whatever the model's precision.
    _, rates = ours_with_rates(run, FLOAT64)
    np.testing.assert_allclose(rates, [schedule(step) for step in range(STEPS)], rtol=4 * 2.0**-24)
