"""Checks of the numbers that a run reports about itself."""

from __future__ import annotations

import math

import numpy as np

from sem_jax.config import PropagatorConfig
from sem_jax.modules.propagator import PropagatorStats
from sem_jax.optim import Reason

# A step's residual may exceed the tolerance by this factor before it counts as not converged (SPEC section 4).
RESIDUAL_FACTOR = 10
NORM_DRIFT_LIMIT = 1e-4
_LOWER_DT = "lower config.model.propagator.cayley_dt"
_CURES = {
    "cg": f"raise config.model.propagator.cg_max_iter or {_LOWER_DT}",
    "chebyshev": f"raise config.model.propagator.chebyshev_degree or {_LOWER_DT}",
    "dense": f"rounding alone leaves as much where hλ is large: {_LOWER_DT}",
    "cg_on_cayley": "it never converges: set config.model.propagator.solver = cg",
}


def convergence_warnings(stats: PropagatorStats, config: PropagatorConfig) -> list[str]:
    """One line for each propagator layer whose solve did not converge or did not keep the norm.

    Args:
      stats: per-layer statistics on the host, each [L].
      config: holds the solver and its tolerance.
    """
    warnings = []
    limit = RESIDUAL_FACTOR * config.cg_tol
    for layer, (residual, iterations, drift) in enumerate(zip(*map(np.asarray, stats), strict=True)):
        if not residual <= limit:
            warnings.append(
                f"propagator layer {layer}: {config.solver} left a residual of {residual:.1e} after {iterations} "
                f"iterations, above {limit:.1e}; {_CURES[config.solver]}"
            )
        if not drift <= NORM_DRIFT_LIMIT:
            warnings.append(
                f"propagator layer {layer}: the norm changed by a factor of 1 ± {drift:.1e}, above "
                f"{NORM_DRIFT_LIMIT:.1e}; the step is not unitary"
            )
    return warnings


def describe_reason(reason: int) -> str:
    """What was not finite in a bad step, in words."""
    return ", ".join(flag.name.lower() for flag in Reason if reason & flag and flag.name) or "nothing"


def bits_per_byte(nats_per_token: float, bytes_per_token: float) -> float:
    """Bits per byte of text from nats per token."""
    return nats_per_token / (math.log(2) * bytes_per_token)
