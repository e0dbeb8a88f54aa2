"""The model's own forward and backward pass over one batch, with every component described on the way.

A probe (`sem_jax.modules.probe`) shows what each part puts out. The same probe describes the gradient that comes back:
it passes the value on beside an unused slot, and the slot's "gradient" is the description of the value's. So nothing is
stored for the description, and layers run under the model's own scan, compiled once whatever the depth.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from sem_jax.config import ModelConfig
from sem_jax.core import graph
from sem_jax.core.complex_ops import rms_norm
from sem_jax.core.selective import transitions
from sem_jax.data import Batch
from sem_jax.diagnosis.statistics import Description, describe, mean_entropy, root_mean_square
from sem_jax.modules.mixer import Mixer
from sem_jax.modules.model import SEM, ModelParts, document_positions, scan_layers
from sem_jax.modules.propagator import PropagatorStats
from sem_jax.optim.weight_decay import STACKED_GROUPS
from sem_jax.training.loss import token_losses
from sem_jax.training.state import Params

# By group ("encoder", "mixers", "propagators", "head") and part; layers have a leading axis [L].
Slots = dict[str, dict[str, Array]]
Descriptions = dict[str, dict[str, Description]]


class GradientDescription(NamedTuple):
    """The gradient at the output of a part."""

    rms: Array
    largest: Array
    bad: Array  # entries that are not finite


class TransportStats(NamedTuple):
    """How the encoder's plan is used."""

    row_entropy: Array  # bits, of one token over the columns
    column_entropy: Array  # bits, of the mean row; log₂M where all columns are used alike
    kept: Array  # columns that stay non-zero in a token's row, the mean over tokens


class MixerStats(NamedTuple):
    """Gates and memory of the mixers, each [L]."""

    gate_mean: Array
    gate_saturated: Array  # share of the spinor gate's entries outside 0.01..0.99
    decay: Array  # largest |a|
    state: Array  # largest |h|


class Walk(NamedTuple):
    """What a pass over the model has shown."""

    parts: Descriptions
    transport: TransportStats | None  # None without a plan
    mixers: MixerStats
    propagators: PropagatorStats  # each [L]
    hamiltonians: Array  # [L, D, D]


class Measurement(NamedTuple):
    """A walk, its loss and all gradients."""

    loss: Array  # mean over target tokens, as training minimises it without a teacher
    walk: Walk
    gradients: Params  # of the loss, as `jax.grad` returns them
    part_gradients: dict[str, dict[str, GradientDescription]]


class Recorder:
    """A probe that describes and keeps each output, and sends the description of its gradient into the slot."""

    def __init__(self, slots: dict[str, Array]):
        self._slots = slots
        self.values: dict[str, Array] = {}
        self.parts: dict[str, Description] = {}

    def __call__(self, name: str, value: Array, /) -> Array:
        """The value."""
        self.values[name] = jax.lax.stop_gradient(value)
        self.parts[name] = describe(self.values[name])
        return _tap(value, self._slots[name])


@jax.custom_vjp
def _tap(value: Array, slot: Array) -> Array:
    del slot
    return value


def _tap_backward(_: None, gradient: Array) -> tuple[Array, Array]:
    bad = jnp.sum(~jnp.isfinite(gradient))
    summary = jnp.stack([root_mean_square(gradient), jnp.max(jnp.abs(gradient)), bad.astype(gradient.real.dtype)])
    return gradient, summary


_tap.defvjp(lambda value, slot: (value, None), _tap_backward)


def make_measurement(
    graphdef: Any, config: ModelConfig, unitary_lambda: float
) -> Callable[[Params, Params, Batch], Measurement]:
    """The function (params, buffers, batch) -> `Measurement`, to be compiled; λ weighs log²Z as in training."""

    def objective(params: Params, slots: Slots, buffers: Params, batch: Batch) -> tuple[Array, Walk]:
        model = ModelParts(graphdef, params, buffers).merge()
        tokens, resets, weights = map(jnp.asarray, batch)
        psi, walked = walk(model, tokens[:, :-1], resets[:, :-1], slots)
        head = Recorder(slots["head"])
        psi = head("final_norm", psi)
        loss = head("readout", token_losses(model, psi, tokens[:, 1:], unitary_lambda)[0][..., None])[..., 0]
        mean = jnp.sum(weights * loss) / jnp.maximum(jnp.sum(weights), 1)
        return mean, walked._replace(parts=walked.parts | {"head": head.parts})

    def measure(params: Params, buffers: Params, batch: Batch) -> Measurement:
        gradient = jax.value_and_grad(objective, argnums=(0, 1), has_aux=True)
        (loss, walked), (gradients, slots) = gradient(params, empty_slots(config), buffers, batch)
        part_gradients = {
            group: {part: GradientDescription(*jnp.moveaxis(slot, -1, 0)) for part, slot in parts.items()}
            for group, parts in slots.items()
        }
        return Measurement(loss, walked, gradients, part_gradients)

    return measure


def empty_slots(config: ModelConfig) -> Slots:
    """Zeros, one slot for each part."""
    size = len(GradientDescription._fields)
    return {
        group: {part: jnp.zeros((config.num_layers, size) if group in STACKED_GROUPS else size) for part in parts}
        for group, parts in part_names(config).items()
    }


def part_names(config: ModelConfig) -> dict[str, tuple[str, ...]]:
    """The parts of each group, in the order of the forward pass."""
    return {
        "encoder": ("embedding", "wave")
        if config.encoder.transport == "none"
        else ("embedding", "plan", "sdr", "wave"),
        "mixers": ("norm", "spinor_gate", "conv", "amplitude_gate", "ssm", "out_proj", "residual"),
        "propagators": ("kerr", "cayley"),
        "head": ("final_norm", "readout"),
    }


def walk(model: SEM, tokens: Array, resets: Array, slots: Slots) -> tuple[Array, Walk]:
    """`SEM.__call__` from the start of a document, observed.

    Args:
      model: the model.
      tokens: [B, S] int.
      resets: [B, S] bool, True where a token starts a document.
      slots: as from `empty_slots`.

    Returns:
      (ψ after the final norm [B, S, D], what was seen on the way to it).
    """
    state, remat = model.initial_state(tokens.shape[0]), model.config.remat
    position = document_positions(state.position, tokens.shape[1], resets)
    encoder = Recorder(slots["encoder"])
    psi, _, column_share = model.encoder(tokens, position, state.encoder, probe=encoder)

    def observed_mixer(mixer, x, inputs):
        past, layer_slots = inputs
        probe = Recorder(layer_slots)
        x, _ = mixer(x, past, position, probe)
        return x, (probe.parts, _mixer_stats(mixer, probe.values, past.ssm, position))

    def observed_propagator(propagator, x, layer_slots):
        probe = Recorder(layer_slots)
        x, stats = propagator(x, probe)
        hamiltonian = propagator.hamiltonian()
        if isinstance(hamiltonian, graph.SparseHamiltonian):
            hamiltonian = graph.to_dense(hamiltonian, propagator.dim)
        return x, (probe.parts, stats, hamiltonian.matrix)

    psi, (mixer_parts, mixers) = scan_layers(model.mixers, psi, (state.mixers, slots["mixers"]), observed_mixer, remat)
    psi, (propagator_parts, propagators, hamiltonians) = scan_layers(
        model.propagators, psi, slots["propagators"], observed_propagator, remat
    )
    psi = rms_norm(psi, model.final_gamma[...])
    parts = {"encoder": encoder.parts, "mixers": mixer_parts, "propagators": propagator_parts}
    transport = _transport_stats(encoder.values, column_share) if "plan" in encoder.values else None
    return psi, jax.lax.stop_gradient(Walk(parts, transport, mixers, propagators, hamiltonians))


def _transport_stats(values: dict[str, Array], column_share: Array) -> TransportStats:
    plan = values["plan"]
    rows = plan / jnp.sum(plan, axis=-1, keepdims=True)  # rows of the reference's plan sum to 1/S
    columns = column_share / jnp.sum(column_share)
    return TransportStats(mean_entropy(rows), mean_entropy(columns), jnp.mean(jnp.sum(values["sdr"] != 0, axis=-1)))


def _mixer_stats(mixer: Mixer, values: dict[str, Array], past: Array, position: Array) -> MixerStats:
    gate = mixer.spinor_gate.gate(values["norm"])
    ssm, x = mixer.ssm, values["amplitude_gate"]
    dt, omega, _ = ssm.inputs(x)
    a = transitions(dt, omega, jax.nn.softplus(ssm.decay[...]), ssm.phase[...], position.T == 0)
    h = ssm.states(x, past, position)
    saturated = jnp.mean(((gate < 0.01) | (gate > 0.99)).astype(gate.dtype))
    stats = MixerStats(jnp.mean(gate), saturated, jnp.max(jnp.abs(a)), jnp.max(jnp.abs(h)))
    return jax.lax.stop_gradient(stats)
