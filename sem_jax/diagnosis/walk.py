"""The model's own forward and backward pass over one batch, with every component described on the way.

A probe (`sem_jax.modules.probe`) shows what each part puts out. The same probe describes the gradient that comes back:
it passes the value on beside an unused slot, and the slot's "gradient" is the description of the value's. So nothing is
stored for the description, and layers run under the model's own scan, compiled once whatever the depth.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from sem_jax.core.statistics import Description, describe, root_mean_square
from sem_jax.data import Batch
from sem_jax.modules.model import SEM, ModelParts
from sem_jax.modules.probe import Observer
from sem_jax.training.loss import token_losses
from sem_jax.training.state import Params

# By group ("encoder", a kind of block, "head") and part; layers have a leading axis [L].
Slots = dict[str, dict[str, Array]]
Descriptions = dict[str, dict[str, Description]]


class GradientDescription(NamedTuple):
    """The gradient at the output of a part."""

    rms: Array
    largest: Array
    bad: Array  # entries that are not finite


class Walk(NamedTuple):
    """What a pass over the model has shown."""

    parts: Descriptions
    details: dict[str, Any]  # by group, what `inspect` of its modules tells; layers have a leading axis [L]
    blocks: dict[str, Any]  # by kind, the statistics that a training step reports, too


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


class RecordingObserver(Observer):
    """Gives each module a `Recorder` and keeps (descriptions of its parts, what the module itself tells)."""

    def __init__(self, slots: Slots):
        self.slots = slots

    def probe(self, slots: dict[str, Array]) -> Recorder:
        """See `Observer`."""
        return Recorder(slots)

    def seen(self, probe: Any, module: Any, state: Any, context: Any) -> tuple[dict[str, Description], Any]:
        """See `Observer`."""
        details = () if module is None else module.inspect(probe.values, state, context)
        return probe.parts, jax.lax.stop_gradient(details)


@jax.custom_vjp
def _tap(value: Array, slot: Array) -> Array:
    del slot
    return value


def _tap_backward(_: None, gradient: Array) -> tuple[Array, Array]:
    bad = jnp.sum(~jnp.isfinite(gradient))
    summary = jnp.stack([root_mean_square(gradient), jnp.max(jnp.abs(gradient)), bad.astype(gradient.real.dtype)])
    return gradient, summary


_tap.defvjp(lambda value, slot: (value, None), _tap_backward)


def measure(parts: ModelParts, batch: Batch, unitary_lambda: float) -> Measurement:
    """Walks a model forward and backward over a batch; to be compiled.

    Args:
      parts: the model.
      batch: [B, S + 1] tokens.
      unitary_lambda: weighs log²Z as in training.
    """

    def objective(params: Params, slots: Slots) -> tuple[Array, Walk]:
        model = parts.replace(params=params).merge()
        tokens, resets, weights = map(jnp.asarray, batch)
        psi, _, stats = model(tokens[:, :-1], resets=resets[:, :-1], observer=RecordingObserver(slots))
        readout = Recorder(slots["head"])
        loss = readout("readout", token_losses(model, psi, tokens[:, 1:], unitary_lambda)[0][..., None])[..., 0]
        mean = jnp.sum(weights * loss) / jnp.maximum(jnp.sum(weights), 1)
        described = {group: seen[0] for group, seen in stats.seen.items()}
        described["head"] |= readout.parts
        return mean, Walk(described, {group: seen[1] for group, seen in stats.seen.items()}, stats.blocks)

    slots = empty_slots(parts.merge())
    (loss, walk), (gradients, filled) = jax.value_and_grad(objective, argnums=(0, 1), has_aux=True)(parts.params, slots)
    part_gradients = {
        group: {part: GradientDescription(*jnp.moveaxis(slot, -1, 0)) for part, slot in group_slots.items()}
        for group, group_slots in filled.items()
    }
    return Measurement(loss, walk, gradients, part_gradients)


def empty_slots(model: SEM) -> Slots:
    """Zeros, one slot for each part."""
    size, depth = len(GradientDescription._fields), model.config.num_layers
    return {
        group: {part: jnp.zeros((depth, size) if group in model.blocks else size) for part in parts}
        for group, parts in model.parts.items()
    }
