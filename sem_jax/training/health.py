"""Checks of the numbers that a run reports about itself.

A `Finding` is a number beyond its limit with the cure. The rules here need no more than a training step reports, so
they cost nothing; `sem_jax.diagnosis` applies the same ones, and others that need a pass of their own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sem_jax.config import PropagatorConfig
from sem_jax.modules.propagator import PropagatorStats
from sem_jax.optim import Reason

# A step's residual may exceed the tolerance by this factor before it counts as not converged (docs/mathematics.md,
# section 4).
RESIDUAL_FACTOR = 10
NORM_DRIFT_LIMIT = 1e-4
# From here on the fastest channels turn by 2·atan(5), 157 of the 180 degrees that there are: the step resolves them no
# longer, and CG needs 20 iterations where it needed 8.
H_LAMBDA_LIMIT = 5.0
_DT = "model.propagator.cayley_dt"
_LOWER_DT = f"lower config.{_DT}"
# By solver: the field to change, and the advice.
_CURES = {
    "cg": ("model.propagator.cg_max_iter", f"raise config.model.propagator.cg_max_iter or {_LOWER_DT}"),
    "chebyshev": (
        "model.propagator.chebyshev_degree",
        f"raise config.model.propagator.chebyshev_degree or {_LOWER_DT}",
    ),
    "dense": (_DT, f"rounding alone leaves as much where hλ is large: {_LOWER_DT}"),
    "cg_on_cayley": ("model.propagator.solver", "it never converges: set config.model.propagator.solver = cg"),
}


@dataclass(frozen=True)
class Finding:
    """A number beyond its limit."""

    component: str  # such as "propagators.0.cayley"
    quantity: str
    value: float
    limit: float
    field: str  # of the configuration, the first to change
    message: str  # component, numbers and cure in words

    @property
    def severity(self) -> float:
        """Decades beyond the limit, on either side of it; infinite where the value is not finite."""
        if not math.isfinite(self.value):
            return math.inf
        return abs(math.log10(max(self.value, 1e-30) / self.limit)) if self.limit > 0 else math.inf


_CHANCE_MARGIN = 0.5  # nats/token: a fresh model may lie this much above


def propagator_findings(
    layer: int, residual: float, iterations: int, drift: float, h_lambda: float, config: PropagatorConfig
) -> list[Finding]:
    """What is wrong with a propagator layer's solve.

    Args:
      layer: counted from 0.
      residual: largest relative residual of a token.
      iterations: that it took.
      drift: largest relative change of a token's norm.
      h_lambda: hλ_max, or a lower bound of it.
      config: holds the solver and its tolerance.
    """
    component, name = f"propagators.{layer}.cayley", f"propagator layer {layer}"
    findings = []
    limit = RESIDUAL_FACTOR * config.solver_tol
    field, cure = _CURES[config.solver]
    if h_lambda > H_LAMBDA_LIMIT and config.solver != "cg_on_cayley":
        field = _DT  # more effort would only treat the symptom
    if not residual <= limit:
        message = (
            f"{name}: {config.solver} left a residual of {residual:.1e} after {iterations} iterations, above "
            f"{limit:.1e}; {cure}"
        )
        findings.append(Finding(component, "residual", residual, limit, field, message))
    if not drift <= NORM_DRIFT_LIMIT:
        message = (
            f"{name}: the norm changed by a factor of 1 ± {drift:.1e}, above {NORM_DRIFT_LIMIT:.1e}; the step is not "
            f"unitary: {cure}"
        )
        findings.append(Finding(component, "norm drift", drift, NORM_DRIFT_LIMIT, field, message))
    if h_lambda > H_LAMBDA_LIMIT:
        message = (
            f"{name}: hλ is {h_lambda:.3g} or more, above {H_LAMBDA_LIMIT:g}; the edge weights have outgrown the time "
            f"step: {_LOWER_DT}, or config.optimizer.learning_rate or config.optimizer.temperature, which make them "
            "wander"
        )
        findings.append(Finding(component, "hλ", h_lambda, H_LAMBDA_LIMIT, _DT, message))
    return findings


def convergence_warnings(stats: PropagatorStats, config: PropagatorConfig) -> list[str]:
    """One line for each finding in a step's propagators.

    Args:
      stats: per-layer statistics on the host, each [L].
      config: holds the solver and its tolerance.
    """
    warnings = []
    layers = zip(stats.residual, stats.iterations, stats.norm_drift, stats.h_lambda, strict=True)
    for layer, numbers in enumerate(layers):
        residual, iterations, drift, bound = (np.asarray(number).item() for number in numbers)
        # λ_max of a Laplacian is above its largest weighted degree (Fiedler, 1973), half the Gershgorin bound.
        findings = propagator_findings(layer, residual, iterations, drift, bound / 2, config)
        warnings += [finding.message for finding in findings]
    return warnings


_PLACES = {
    Reason.STATE: "value of the state before the step",
    Reason.LOSS: "loss",
    Reason.GRADIENT: "gradient",
    Reason.UPDATE: "update",
    Reason.PARAMETERS: "new parameter",
    Reason.MOMENTS: "new moment",
}


def chance_warning(nll: float, vocab_size: int) -> str | None:
    """What to say of a validation loss in nats/token that no model should have; None of any other."""
    chance = math.log(vocab_size)
    if not nll > chance + _CHANCE_MARGIN:  # a NaN is not; the guard speaks of that
        return None
    return (
        f"the model is worse than a guess (ln {vocab_size} = {chance:.3f} nats/token): lower optimizer.learning_rate, "
        "temperature or noise_cap"
    )


def describe_skip(reason: int, leaf: int, names: Sequence[str]) -> str:
    """Why a step was bad, in words: "gradient not finite or too large in readout/weight".

    Args:
      reason: `Reason` of the step, not 0.
      leaf: of the same step, -1 where no leaf is to blame.
      names: of the leaves, as `sem_jax.optim.leaf_names` gives them.
    """
    if reason == Reason.SPIKE:
        return "loss or gradient norm far above the last steps'"
    cause = f"{_PLACES[Reason(reason)]} not finite or too large"
    return cause if leaf < 0 else f"{cause} in {names[leaf]}"
