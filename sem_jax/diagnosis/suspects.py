"""From numbers to suspects: each rule compares one number with its limit and names the field of the configuration.

What a training step can check by itself is in `sem_jax.training.health`; the limits here need a pass of their own.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

from sem_jax.config import Config
from sem_jax.diagnosis.record import Component, Diagnosis
from sem_jax.training.health import Finding, propagator_findings

GAIN_LIMIT = 10.0  # rms out over rms in; linear parts start between .2 and 2
DEAD_GAIN = 1e-3  # below it a part lets nothing through
GROWTH_LIMIT = 10.0  # of the gradient from a layer's output to its input; residual and unitary layers start at 1
TAIL_LIMIT = 2.0  # a tail index below 2 has no variance
SATURATED_LIMIT = 0.5  # share of gates that are fully open or shut
STATE_LIMIT = 100.0  # |h|, where the reference clamps (docs/mathematics.md, section 2, Mixer 4)
ROW_ENTROPY_LIMIT = 1e-4  # bits; one column then holds 99.9995 % of a row and no gradient gets through the plan
KEPT_LIMIT = 1.0  # columns of a row that are not zero
COLUMN_ENTROPY_LIMIT = 1.0  # bits; two columns then serve all tokens
NOISE_LIMIT = 1.0
LOSS_MARGIN = 1.0  # nats above log V, what a uniform guess costs
SIZE_LIMIT = 100.0  # rms of the first and of the last wave; of order one in a healthy model
HUGE = 1e9  # its fourth power is near the largest float32
MEMORY_LIMIT = 0.01  # largest |a|; of an input 1 % is left one token later

_LINEAR = frozenset({"spinor_gate", "in_proj", "conv", "ssm", "out_proj", "residual"})
_WEIGHTS = "optimizer.weight_decay"
_SHRINK = "the weights have grown: raise config.optimizer.weight_decay or lower config.optimizer.learning_rate"


def find_suspects(config: Config, diagnosis: Diagnosis) -> list[Finding]:
    """All findings, the worst first; what is not finite comes before everything else, in the order of its origin."""
    findings = [
        *_damaged(diagnosis.damaged),
        *_not_finite(diagnosis.components),
        *_loss(config, diagnosis),
        *_sizes(config, diagnosis.components),
        *_mixers(config, diagnosis),
        *_propagators(config, diagnosis),
        *_transport(config, diagnosis),
        *_noise(diagnosis),
    ]
    # Stable: equals stay in the order of the model.
    return sorted(_without_heirs(findings), key=lambda finding: -finding.severity)


def _without_heirs(findings: list[Finding]) -> list[Finding]:
    """Where a part of a layer has grown, the growth that the layer's residual shows is inherited from it."""
    growth = [f.component.rpartition(".")[::2] for f in findings if f.quantity == "gain" and f.value > GAIN_LIMIT]
    heirs = {f"{layer}.residual" for layer, part in growth if part != "residual"}
    return [f for f in findings if f.component not in heirs or f.quantity not in ("gain", "gradient growth")]


def _damaged(leaves: list[str]) -> Iterator[Finding]:
    for name in leaves:
        text = f"{name}: not finite in the state of the run, which no step mends; go back to an earlier checkpoint and"
        yield _broken(name, "state", text)


def _not_finite(components: list[Component]) -> Iterator[Finding]:
    """The origin of what is not finite; all that comes after it in the same direction only inherits it."""
    origin = next((c for c in components if c.bad), None)
    for c in components:
        if c.parameter_bad:
            text = f"{c.name}: {c.parameter_bad} of its parameters are not finite"
            if c is origin:
                text += f", nor is its output from {c.first_bad} on"
            yield _broken(c.name, "parameters", f"{text}; go back to an earlier checkpoint and")
        elif c is origin:
            yield _overflow(c, components[: components.index(c)])
    if origin is None:
        yield from _bad_gradients(components)


def _overflow(c: Component, before: list[Component]) -> Finding:
    """An output that is not finite although its parameters are: blamed on the first huge output before it."""
    text = f"{c.name}: {c.bad} entries of its output are not finite, the first at {c.first_bad}"
    text += " [sequence, position, channel], though its parameters are;"
    for grown in before:
        if grown.output["largest"] > HUGE:
            cause = f"{grown.name}: its output reaches {grown.output['largest']:.1e}, which overflows later on;"
            return _broken(grown.name, "output", f"{cause} {text}")
    return _broken(c.name, "output", text)


def _bad_gradients(components: list[Component]) -> Iterator[Finding]:
    for before, c in reversed(list(zip([None, *components], components, strict=False))):
        if c.gradient_bad:
            return  # inherited from what comes after it
        if (before and before.gradient_bad) or not math.isfinite(c.parameter_gradient_norm):
            where = "its input" if before and before.gradient_bad else "its parameters"
            yield _broken(c.name, "gradient", f"{c.name}: the gradient is finite at its output and not at {where};")
            return


def _broken(name: str, quantity: str, text: str) -> Finding:
    cure = "lower config.optimizer.learning_rate"
    return Finding(name, quantity, math.nan, 0.0, "optimizer.learning_rate", f"{text} {cure}")


def _loss(config: Config, diagnosis: Diagnosis) -> Iterator[Finding]:
    limit = math.log(config.model.vocab_size) + LOSS_MARGIN
    if config.model.likelihood != "reference" and diagnosis.loss > limit:
        text = (
            f"head.readout: the loss is {diagnosis.loss:.4g} nats, above {limit:.4g}: worse than a uniform guess; go "
            "back to an earlier checkpoint and lower config.optimizer.learning_rate"
        )
        yield Finding("head.readout", "loss", diagnosis.loss, limit, "optimizer.learning_rate", text)


def _divides_by_rms(config: Config) -> bool:
    """Whether a mixer divides what its states give out by its RMS, so that neither this nor they can be too large."""
    return config.model.mixer.kind == "selective" and config.model.mixer.output_norm


def _sizes(config: Config, components: list[Component]) -> Iterator[Finding]:
    bounded = {"ssm"} if _divides_by_rms(config) else set()
    for c in components:
        group, part = c.name.split(".")[0], c.name.split(".")[-1]
        if group == "mixers" and part in _LINEAR - bounded and c.gain > GAIN_LIMIT:
            text = f"{c.name}: its output is {c.gain:.3g} times its input, above {GAIN_LIMIT:g}; {_SHRINK}"
            yield Finding(c.name, "gain", c.gain, GAIN_LIMIT, _WEIGHTS, text)
        if group == "mixers" and part != "norm" and c.gain < DEAD_GAIN:
            text = (
                f"{c.name}: its output is {c.gain:.1e} of its input, below {DEAD_GAIN:g}, so it is shut; lower "
                "config.optimizer.weight_decay or config.optimizer.learning_rate"
            )
            yield Finding(c.name, "gain", c.gain, DEAD_GAIN, _WEIGHTS, text)
        is_end = c.name in ("encoder.wave", "head.final_norm")
        if is_end and c.output["rms"] > SIZE_LIMIT:
            text = f"{c.name}: its output has an rms of {c.output['rms']:.3g}, above {SIZE_LIMIT:g}; {_SHRINK}"
            yield Finding(c.name, "size", c.output["rms"], SIZE_LIMIT, _WEIGHTS, text)
        if (is_end or group in ("mixers", "propagators")) and c.output["tail"] < TAIL_LIMIT:
            tail = c.output["tail"]
            text = (
                f"{c.name}: tail index {tail:.2f}, below {TAIL_LIMIT:g}: a few entries hold all the power (kurtosis "
                f"{c.output['kurtosis']:.3g}); lower config.optimizer.clip_norm or config.optimizer.learning_rate"
            )
            yield Finding(c.name, "tail index", tail, TAIL_LIMIT, "optimizer.clip_norm", text)


def _mixers(config: Config, diagnosis: Diagnosis) -> Iterator[Finding]:
    for number, layer in enumerate(diagnosis.mixers):
        name = f"mixers.{number}"
        yield from _growth(f"{name}.residual", layer.gradient_growth, _WEIGHTS, _SHRINK)
        if layer.gate_saturated is not None and layer.gate_saturated > SATURATED_LIMIT:
            text = (
                f"{name}.spinor_gate: {layer.gate_saturated:.0%} of its gates are fully open or shut, above "
                f"{SATURATED_LIMIT:.0%}; {_SHRINK}"
            )
            yield Finding(f"{name}.spinor_gate", "saturation", layer.gate_saturated, SATURATED_LIMIT, _WEIGHTS, text)
        if layer.decay < MEMORY_LIMIT:
            text = (
                f"{name}.ssm: its slowest decay is |a| = {layer.decay:.1e}, below {MEMORY_LIMIT:g}, so it remembers "
                "nothing; lower config.optimizer.learning_rate"
            )
            yield Finding(f"{name}.ssm", "memory", layer.decay, MEMORY_LIMIT, "optimizer.learning_rate", text)
        if layer.state > STATE_LIMIT and not _divides_by_rms(config):
            field, cure = _WEIGHTS, _SHRINK
            if config.model.mixer.kind == "fixed":
                field = "model.mixer.clamp_interval"
                cure = f"set config.{field} = 256, or config.model.mixer.input_scale = unit_variance"
            text = (
                f"{name}.ssm: its state reaches {layer.state:.3g}, above {STATE_LIMIT:g}, with decays up to "
                f"|a| = {layer.decay:.6f}; {cure}"
            )
            yield Finding(f"{name}.ssm", "state", layer.state, STATE_LIMIT, field, text)


def _propagators(config: Config, diagnosis: Diagnosis) -> Iterator[Finding]:
    parts = {c.name: c for c in diagnosis.components}
    kerr = "model.propagator.kerr_saturation"
    cure = f"set config.{kerr} = 0.1, which bounds the Kerr phase"
    if config.model.propagator.kerr_saturation:
        kerr = "model.propagator.nonlinear_alpha"
        cure = f"lower config.{kerr}, which the Kerr phase's gradient grows with"
    for number, layer in enumerate(diagnosis.propagators):
        name = f"propagators.{number}"
        yield from _growth(f"{name}.kerr", layer.gradient_growth, kerr, cure)
        if parts[f"{name}.cayley"].bad:
            continue  # its origin has been named
        solver = config.model.propagator
        for finding in propagator_findings(
            number, layer.residual, layer.iterations, layer.norm_drift, layer.h_lambda, solver
        ):
            if solver.solver == "cg" and finding.quantity == "residual":
                enough = f"; {layer.iterations_bound} iterations are enough at hλ = {layer.h_lambda:.3g}"
                finding = dataclasses.replace(finding, message=finding.message + enough)
            yield finding


def _growth(component: str, growth: float, field: str, cure: str) -> Iterator[Finding]:
    if growth > GROWTH_LIMIT:
        text = f"{component}: the gradient grows {growth:.3g}-fold through the layer, above {GROWTH_LIMIT:g}; {cure}"
        yield Finding(component, "gradient growth", growth, GROWTH_LIMIT, field, text)
    elif growth < 1 / GROWTH_LIMIT:
        text = f"{component}: of the gradient {growth:.1e} is left behind the layer, below {1 / GROWTH_LIMIT:g}; {cure}"
        yield Finding(component, "gradient growth", growth, 1 / GROWTH_LIMIT, field, text)


def _transport(config: Config, diagnosis: Diagnosis) -> Iterator[Finding]:
    found, encoder = diagnosis.transport, config.model.encoder
    if found is None:
        return
    field = "model.encoder.sinkhorn_epsilon"
    if found["kept"] < KEPT_LIMIT:
        text = (
            f"encoder.sdr: {found['kept']:.2f} columns of a row are not zero, below {KEPT_LIMIT:g} of the "
            f"{encoder.sdr_sparsity - 1} that config.model.encoder.sdr_sparsity keeps: the plan is flat, so that all "
            "entries are at the threshold; lower config.model.encoder.sinkhorn_epsilon"
        )
        yield Finding("encoder.sdr", "columns kept", found["kept"], KEPT_LIMIT, field, text)
    if found["row_entropy"] < ROW_ENTROPY_LIMIT:
        text = (
            f"encoder.plan: a row holds {found['row_entropy']:.1e} bits, below {ROW_ENTROPY_LIMIT:g}: each token has "
            "one column and no gradient to change it; raise config.model.encoder.sinkhorn_epsilon"
        )
        yield Finding("encoder.plan", "row entropy", found["row_entropy"], ROW_ENTROPY_LIMIT, field, text)
    if found["column_entropy"] < COLUMN_ENTROPY_LIMIT:
        text = (
            f"encoder.plan: the columns in use hold {found['column_entropy']:.2f} bits, below "
            f"{COLUMN_ENTROPY_LIMIT:g}: all tokens share them; set config.model.encoder.transport = causal_sinkhorn, "
            "or raise config.model.encoder.sinkhorn_epsilon"
        )
        transport = "model.encoder.transport"
        yield Finding("encoder.plan", "column entropy", found["column_entropy"], COLUMN_ENTROPY_LIMIT, transport, text)


def _noise(diagnosis: Diagnosis) -> Iterator[Finding]:
    ratio = diagnosis.noise_to_update
    if ratio > NOISE_LIMIT:
        known = [c for c in diagnosis.components if math.isfinite(c.noise_to_update)]
        worst = max(known, key=lambda c: c.noise_to_update)
        text = (
            f"optimizer: the Langevin noise of a step is {ratio:.3g} times its update, above {NOISE_LIMIT:g}, and "
            f"{worst.noise_to_update:.3g} times in {worst.name}; lower config.optimizer.temperature or "
            "config.optimizer.noise_cap"
        )
        yield Finding("optimizer", "noise to update", ratio, NOISE_LIMIT, "optimizer.temperature", text)
