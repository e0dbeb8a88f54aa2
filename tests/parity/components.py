"""Every component and the whole model, as one function of (model, wave, inputs) on each side."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from sem_jax.core.complex_ops import rms_norm
from sem_jax.modules.block import Context
from sem_jax.modules.mixer import MixerState
from sem_jax.training.loss import batch_loss, born_loss, reference_loss

from .pair import REFERENCE, UNITARY_LAMBDA, Inputs


@dataclass(frozen=True)
class Component:
    """One function on both sides: of the array that is differentiated, or of (that array, one to be compared only)."""

    name: str
    ours: Callable[[Any, Any, Inputs], Any]
    theirs: Callable[[Any, Any, Inputs], Any]
    changes: dict[str, Any] = field(default_factory=dict)  # to the configuration
    wave_scale: float = 1.0


def mixer_of(model):
    return _layer(model.mixers)


def propagator_of(model):
    return _layer(model.propagators)


def _layer(stacked):
    structure, variables = nnx.split(stacked)
    return nnx.merge(structure, jax.tree.map(lambda x: x[0], variables))


def past_of(model, inputs: Inputs) -> MixerState:
    return MixerState(*(memory[0] for memory in model.initial_state(inputs.tokens.shape[0]).blocks["mixers"]))


def encoder(transport: str, **changes: Any) -> Component:
    def ours(model, wave, inputs):
        state = model.initial_state(inputs.tokens.shape[0]).encoder
        return model.encoder(inputs.tokens, state, Context(inputs.position))[0]

    def theirs(model, wave, inputs):
        return model.encoder(inputs.tokens, inputs.position)

    changes = {"encoder.transport": transport} | {f"encoder.{key}": value for key, value in changes.items()}
    return Component(f"encoder, {transport}", ours, theirs, changes)


def encoder_with_frequencies(model, wave, inputs):
    state = model.initial_state(inputs.tokens.shape[0]).encoder
    return model.encoder(inputs.tokens, state, Context(inputs.position), inputs.token_freqs)[0]


def convolution(model, wave, inputs):
    return mixer_of(model).conv(wave, past_of(model, inputs).taps, inputs.position)[0]


def amplitude_gate(model, wave, inputs):
    return mixer_of(model).amplitude_gate(wave)


def state_space(model, wave, inputs):
    return mixer_of(model).ssm(wave, past_of(model, inputs).ssm, inputs.position)[0]


def mixer(model, wave, inputs):
    return mixer_of(model)(wave, past_of(model, inputs), Context(inputs.position))[0]


def hamiltonian(model, wave, inputs):
    return propagator_of(model).hamiltonian().matrix


def propagator(solver: str, matvec: str, **changes: Any) -> Component:
    changes = {"propagator.solver": solver, "propagator.matvec": matvec} | changes
    return Component(
        f"propagator, {solver} solver, {matvec} H",
        lambda model, wave, inputs: propagator_of(model)(wave, (), Context(inputs.position))[0],
        lambda model, wave, inputs: model.propagator.layers[0](wave),
        changes,
    )


TO_ROUNDING = {"propagator.cg_max_iter": 40, "propagator.solver_tol": 1e-15, "propagator.chebyshev_degree": 60}

COMPONENTS = [
    encoder("none"),
    encoder("row_softmax"),
    encoder("causal_sinkhorn"),
    encoder("sequence_sinkhorn", embedding_skip=False, sinkhorn_max_iter=50),
    Component(
        "encoder, row_softmax with token frequencies",
        encoder_with_frequencies,
        lambda model, wave, inputs: model.encoder(inputs.tokens, inputs.position, inputs.token_freqs),
        {"encoder.embedding_skip": False},
    ),
    Component(
        "norm",
        lambda model, wave, inputs: rms_norm(wave, model.final_gamma[...]),
        lambda model, wave, inputs: model.final_norm(wave),
    ),
    Component(
        "spinor gate",
        lambda model, wave, inputs: mixer_of(model).spinor_gate(wave),
        lambda model, wave, inputs: model.mamba_layers[0].spinor_gate(wave),
    ),
    Component(
        "convolution", convolution, lambda model, wave, inputs: model.mamba_layers[0].conv(wave, inputs.position)
    ),
    Component(
        "amplitude gate",
        amplitude_gate,
        lambda model, wave, inputs: model.mamba_layers[0].amplitude_gate(wave),
    ),
    *(
        Component(
            f"state space, {name}",
            state_space,
            lambda model, wave, inputs: model.mamba_layers[0].ssm(wave, inputs.position),
            {f"mixer.{key}": value for key, value in changes.items()},
            wave_scale,
        )
        for name, changes, wave_scale in (
            ("dt", {"input_scale": "dt"}, 1.0),
            ("unit variance", {"input_scale": "unit_variance"}, 1.0),
            ("clamped", {"clamp_interval": 2}, 200.0),
        )
    ),
    Component("mixer", mixer, lambda model, wave, inputs: model.mamba_layers[0](wave, inputs.position)),
    Component(
        "Kerr phase",
        lambda model, wave, inputs: propagator_of(model).kerr(wave),
        lambda model, wave, inputs: model.propagator.layers[0].kerr(wave),
    ),
    Component("Hamiltonian", hamiltonian, lambda model, wave, inputs: model.propagator.layers[0].hamiltonian()),
    propagator("dense", "dense"),
    propagator("cg", "sparse", **TO_ROUNDING),
    propagator("chebyshev", "sparse", **TO_ROUNDING),
    Component(
        "readout, reference logits",
        lambda model, wave, inputs: model.readout.reference_logits(wave),
        lambda model, wave, inputs: (model.sampler.logits(wave), model.sampler.amplitude_sq(wave)),
    ),
    Component(
        "readout, Born log P",
        lambda model, wave, inputs: model.readout.log_probs(wave),
        lambda model, wave, inputs: model.sampler.born_log_probs(wave, model.settings.born_floor)[0],
    ),
    Component(
        "loss, reference",
        lambda model, wave, inputs: reference_loss(model, wave, inputs.targets, UNITARY_LAMBDA)[0],
        lambda model, wave, inputs: model.token_loss(wave, inputs.targets),
        {"likelihood": "reference"},
    ),
    Component(
        "loss, Born",
        lambda model, wave, inputs: born_loss(model, wave, inputs.targets, UNITARY_LAMBDA)[0],
        lambda model, wave, inputs: model.token_loss(wave, inputs.targets),
    ),
]


def whole_model(name: str, changes: dict[str, Any], documents: bool) -> Component:
    """Weighted mean loss from tokens; ψ beside it."""

    def ours(model, wave, inputs):
        resets = inputs.resets if documents else jnp.zeros_like(inputs.resets)
        sums, *_ = batch_loss(model, inputs.tokens, inputs.targets, resets, inputs.weights, UNITARY_LAMBDA)
        return sums.loss / sums.weight, model(inputs.tokens, resets=resets)[0]

    def theirs(model, wave, inputs):
        resets = inputs.resets if documents else None
        loss = model.loss(inputs.tokens, inputs.targets, resets, inputs.weights)
        return loss, model(inputs.tokens, resets)

    return Component(f"model, {name}", ours, theirs, changes | {"num_layers": 2})


CAUSAL = {
    "remat": "layers",
    "encoder.transport": "causal_sinkhorn",
    "mixer.input_scale": "unit_variance",
    "mixer.clamp_interval": 4,
    "propagator.solver": "cg",
    "propagator.matvec": "sparse",
    **TO_ROUNDING,
}
MODELS = [
    whole_model("reference", REFERENCE, documents=False),
    whole_model("default", {}, documents=True),
    whole_model("causal Sinkhorn, unit variance, CG", CAUSAL, documents=True),
]
