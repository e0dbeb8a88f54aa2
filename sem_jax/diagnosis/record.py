"""What a diagnosis holds: plain numbers by component, ready for the rules, the terminal and JSON."""

from __future__ import annotations

import dataclasses
import math
import operator
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from sem_jax.config import Config
from sem_jax.core.statistics import Description
from sem_jax.diagnosis.parameters import WHOLE, ParameterStats
from sem_jax.diagnosis.walk import GradientDescription, Measurement
from sem_jax.modules.model import SEM
from sem_jax.training.health import RESIDUAL_FACTOR, Finding
from sem_jax.training.state import TrainState


@dataclass(frozen=True)
class Component:
    """One part of the model: its output, and the gradient at it. Its input is the output of `source`."""

    name: str  # such as "mixers.0.conv"
    source: str  # name of the component it reads; empty: token ids
    bad: int  # entries of the output that are not finite
    first_bad: list[int] | None  # [sequence, position, channel] of the first of them
    input: dict[str, float]  # rms, largest, kurtosis, tail, entropy and coherence (`sem_jax.core.statistics`)
    output: dict[str, float]
    entropy_transfer: float  # bits, entropy of the output less that of the input
    gradient_rms: float  # of the loss, at the output
    gradient_largest: float
    gradient_bad: int  # entries that are not finite
    gradient_growth: float  # rms of the gradient at the input over that at the output
    parameter_bad: int  # parameters that are not finite
    parameter_gradient_norm: float
    noise_to_update: float  # see `ParameterStats`

    @property
    def gain(self) -> float:
        """rms of the output over rms of the input."""
        return _ratio(self.output["rms"], self.input["rms"])


@dataclass(frozen=True)
class MixerLayer:
    """Gates, memory and stream of one mixer."""

    gate_mean: float | None  # None: there is no spinor gate
    gate_saturated: float | None  # share of entries outside 0.01..0.99
    decay: float  # largest |a|
    state: float  # largest |h|
    gain: float  # rms of the stream after the layer over that before it
    gradient_growth: float  # rms of the gradient at the layer's input over that at its output


@dataclass(frozen=True)
class PropagatorLayer:
    """Solve and spectrum of one propagator."""

    h_lambda: float  # hλ_max, from the eigenvalues
    condition: float  # κ = 1 + (hλ_max)²
    residual: float  # largest of a token
    iterations: int
    iterations_bound: int  # of CG, after which no residual exceeds ten times solver_tol; see `cg_iterations`
    norm_drift: float  # largest |‖x‖/‖ψ‖ − 1| of a token
    gradient_growth: float


@dataclass(frozen=True)
class Diagnosis:
    """All that was found."""

    name: str
    step: int
    loss: float
    tokens: int
    components: list[Component]  # in the order of the forward pass
    transport: dict[str, float] | None  # row_entropy, column_entropy (bits), kept (columns a row)
    mixers: list[MixerLayer]
    propagators: list[PropagatorLayer]
    noise_to_update: float  # of all parameters together
    damaged: list[str]  # leaves of the state that are not finite: buffers, moments, average
    suspects: list[Finding]  # the worst first

    def to_json(self) -> dict[str, Any]:
        """Nested dicts and lists; numbers that are not finite are None, which JSON has a word for."""
        return _finite(dataclasses.asdict(self))


def collect(
    config: Config,
    state: TrainState,
    measured: Measurement,
    parameters: dict[str, ParameterStats],
    damaged: list[str],
    tokens: int,
) -> Diagnosis:
    """The diagnosis without suspects.

    Args:
      config: the experiment.
      state: that was measured.
      measured: on the host.
      parameters: by component; as from `parameter_stats`.
      damaged: names of leaves of the state.
      tokens: of the batch.
    """
    components: dict[str, Component] = {}
    for name, source, part, gradient in _parts(state.model.merge(), measured):
        output = _numbers(part)
        before = components.get(source)
        stats = parameters.get(name, ParameterStats(0, 0.0, math.nan))
        components[name] = Component(
            name=name,
            source=source,
            bad=int(part.bad),
            first_bad=[int(i) for i in part.first_bad] if part.bad else None,
            input=before.output if before else dict.fromkeys(output, math.nan),
            output=output,
            entropy_transfer=output["entropy"] - before.output["entropy"] if before else math.nan,
            gradient_rms=float(gradient.rms),
            gradient_largest=float(gradient.largest),
            gradient_bad=int(gradient.bad),
            gradient_growth=_ratio(before.gradient_rms, float(gradient.rms)) if before else math.nan,
            parameter_bad=stats.bad,
            parameter_gradient_norm=stats.gradient_norm,
            noise_to_update=stats.noise_to_update,
        )
    details = measured.walk.details
    transport, layers = details["encoder"], range(config.model.num_layers)
    return Diagnosis(
        name=config.name,
        step=int(state.step),
        loss=float(measured.loss),
        tokens=tokens,
        components=list(components.values()),
        transport={k: float(v) for k, v in transport._asdict().items()} if transport else None,
        mixers=[_mixer(measured, components, layer) for layer in layers if "mixers" in details],
        propagators=[_propagator(config, measured, components, layer) for layer in layers if "propagators" in details],
        noise_to_update=parameters[WHOLE].noise_to_update,
        damaged=damaged,
        suspects=[],
    )


def cg_iterations(h_lambda: float, residual: float) -> int:
    """Iterations of CG on (I + h²H²)z = (I − ihH)ψ after which ‖(I + ihH)x − (I − ihH)ψ‖/‖ψ‖ <= residual is certain.

    With e the error of z, (I + ihH)x − (I − ihH)ψ = 2(I − ihH)⁻¹(I + h²H²)e, whose norm is twice the energy norm of e;
    at the start, z = 0, that energy norm is ‖ψ‖. So the residual after k iterations is at most 4ρᵏ with
    ρ = (√κ − 1)/(√κ + 1), κ = 1 + (hλ_max)² (Saad, 2003, "Iterative Methods for Sparse Linear Systems", equation
    6.128), in exact arithmetic.
    """
    root = math.hypot(1, h_lambda)
    decay = 2 * math.atanh(1 / root) if root > 1 else math.inf  # −log ρ, which does not vanish where ρ rounds to 1
    return max(math.ceil(math.log(4 / residual) / decay), 1)


def largest_eigenvalue(matrix: np.ndarray) -> float:
    """λ_max of a symmetric matrix [D, D] in double precision; NaN where the matrix is not finite."""
    return float(np.linalg.eigvalsh(matrix.astype(np.float64))[-1]) if np.all(np.isfinite(matrix)) else math.nan


def _mixer(measured: Measurement, components: dict[str, Component], layer: int) -> MixerLayer:
    end = components[f"mixers.{layer}.residual"]
    details = measured.walk.details["mixers"]._asdict()
    numbers: dict[str, Any] = {key: None if values is None else float(values[layer]) for key, values in details.items()}
    return MixerLayer(**numbers, gain=end.gain, gradient_growth=end.gradient_growth)


def _propagator(config: Config, measured: Measurement, components: dict[str, Component], layer: int) -> PropagatorLayer:
    propagator, stats = config.model.propagator, measured.walk.blocks["propagators"]
    matrix = np.asarray(measured.walk.details["propagators"][layer])
    h_lambda = propagator.cayley_dt / 2 * largest_eigenvalue(matrix)
    limit = RESIDUAL_FACTOR * propagator.solver_tol
    kerr, cayley = (components[f"propagators.{layer}.{part}"] for part in ("kerr", "cayley"))
    return PropagatorLayer(
        h_lambda=h_lambda,
        condition=1 + h_lambda**2,
        residual=float(stats.residual[layer]),
        iterations=int(stats.iterations[layer]),
        iterations_bound=cg_iterations(h_lambda, limit) if math.isfinite(h_lambda) else 0,
        norm_drift=float(stats.norm_drift[layer]),
        gradient_growth=kerr.gradient_growth * cayley.gradient_growth,
    )


def _parts(model: SEM, measured: Measurement) -> Iterator[tuple[str, str, Description, GradientDescription]]:
    """(name, name of its source, output, gradient at it) of every part, in the order of the forward pass."""
    stream = previous = ""
    for group, layer in _modules(model):
        residual = model.blocks[group].RESIDUAL if group in model.blocks else frozenset()
        for part in model.parts[group]:
            output, gradient = measured.walk.parts[group][part], measured.part_gradients[group][part]
            name = f"{group}.{part}"
            if layer is not None:
                name = f"{group}.{layer}.{part}"
                output, gradient = jax.tree.map(operator.itemgetter(layer), (output, gradient))
            yield name, stream if part in residual else previous, output, gradient
            previous = name
        stream = previous


def _modules(model: SEM) -> Iterator[tuple[str, int | None]]:
    """(group, layer) of every module, in the order of the forward pass; None: the group is no stack of layers."""
    yield "encoder", None
    for kinds in model.passes():
        yield from ((kind, layer) for layer in range(model.config.num_layers) for kind in kinds)
    yield "head", None


def _numbers(part: Description) -> dict[str, float]:
    return {key: float(value) for key, value in part._asdict().items() if key not in ("bad", "first_bad")}


def _ratio(a: float, b: float) -> float:
    return a / b if b else math.nan


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
