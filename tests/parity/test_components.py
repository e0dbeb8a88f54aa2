"""Every component and the whole model: values and the gradient of every parameter against the PyTorch reference.

Float64 leaves only the mathematics: relative to the largest entry 1e-10 for values and 1e-8 for gradients.

Float32 is compared with the reference in float64. What rounding may do is read off the reference itself: run in
float32, several times with parameters and wave off by a rounding so that each run rounds differently, its largest
deviation from float64 is the estimate. Another order of the same operations errs by a small multiple of it.
"""

from __future__ import annotations

import pytest

from .comparison import FLOAT32, FLOAT64, SECOND_VALUE, VALUE, Case, deviation, relative_errors, rounding_estimate
from .components import COMPONENTS, MODELS, Component

VALUE_TOLERANCE, GRADIENT_TOLERANCE = 1e-10, 1e-8
FLOAT32_MULTIPLE = 10.0  # of the estimate of rounding
SEEDS = (0, 1, 2)

pytestmark = pytest.mark.usefixtures("quick_compilation")


def name_of(component: Component) -> str:
    return component.name


@pytest.mark.parametrize("component", [*COMPONENTS, *MODELS], ids=name_of)
def test_double_precision_agrees_to_rounding(component, x64):
    for seed in SEEDS:
        case = Case(component, seed)
        errors = relative_errors(case.jax_results(FLOAT64), case.truth())
        values = {name: errors.pop(name) for name in (VALUE, SECOND_VALUE) if name in errors}
        assert max(values.values()) < VALUE_TOLERANCE, seed
        assert {name: e for name, e in errors.items() if not e < GRADIENT_TOLERANCE} == {}, seed


@pytest.mark.parametrize("component", [*COMPONENTS, *MODELS[:2]], ids=name_of)
def test_single_precision_errs_no_more_than_rounding_explains(component):
    case = Case(component, seed=0)
    ours, truth, estimate = case.jax_results(FLOAT32), case.truth(), rounding_estimate(case, FLOAT32)
    deviations = {name: deviation(ours[name], x) for name, x in truth.items()}
    limit = {name: FLOAT32_MULTIPLE * e for name, e in estimate.items()}
    assert {name: e / estimate[name] for name, e in deviations.items() if not e <= limit[name]} == {}
