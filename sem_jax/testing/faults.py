"""Faults on purpose: a NaN, an infinity or an overflow in one chosen number of one chosen training step."""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from sem_jax.config import Config
from sem_jax.data import Batch
from sem_jax.optim import guarded, langevin_adamw, leaf_names, make_schedule
from sem_jax.optim.chain import LangevinAdamWState
from sem_jax.training.state import TrainState
from sem_jax.training.step import StepMetrics, TrainStep, make_train_step


class Place(enum.IntEnum):
    """Where a fault strikes. All but the last three are refused without a trace; those damage the state itself."""

    BATCH = 0  #: the weight of one target
    LOSS = 1
    GRADIENT = 2
    UPDATE = 3  #: what the optimizer proposes to add to the parameters
    NEW_FIRST_MOMENT = 4  #: what it proposes as its own next state
    NEW_SECOND_MOMENT = 5
    PARAMETER = 6  #: before the step
    FIRST_MOMENT = 7
    SECOND_MOMENT = 8


class Fault(NamedTuple):
    """One number of one step; the first entry of a leaf, and the imaginary part where the leaf is complex."""

    place: int | Array  #: `Place`
    step: int | Array  #: as it is reported, counted from 1
    value: float | Array
    leaf: str | int | Array = 0  #: a parameter such as "readout/weight", or its index; BATCH and LOSS have no leaf


def planting(*faults: Fault) -> Callable[[Config], TrainStep]:
    """A training step with faults, one or more, but at most one a step.

    It is what `sem_jax.training.loop.train` takes as `make_step`.

    Raises:
      ValueError: there is no fault, or one that can never strike: no place, no step, a step that another one has; and,
        when the first step is taken, a fault in a leaf that is none.
    """
    _require_strikes(faults)

    def make_step(config: Config) -> TrainStep:
        step = make_faulty_step(config)
        return lambda state, batch: step(state, batch, [resolve(fault, state.params) for fault in faults])

    return make_step


def make_faulty_step(
    config: Config,
) -> Callable[[TrainState, Batch, Sequence[Fault]], tuple[TrainState, StepMetrics]]:
    """The compiled step (state, batch, faults) -> (state, metrics), which donates the state's buffers.

    The faults are arguments, so that one compilation serves all of them; their leaves are numbers, see `resolve`.
    """

    def step(state: TrainState, batch: Batch, faults: Sequence[Fault]) -> tuple[TrainState, StepMetrics]:
        fault = _of_step(faults, state.step)
        weights: Any = _plant_entry(jnp.asarray(batch.weights), fault.place == int(Place.BATCH), fault.value)
        params = _plant(state.params, fault, Place.PARAMETER)
        moments = _plant_moments(state.opt_state.inner, fault, Place.FIRST_MOMENT, Place.SECOND_MOMENT)
        state = state.replace(params=params, opt_state=state.opt_state._replace(inner=moments))
        optimizer = _optimizer(config, fault, state.model.decays())
        return make_train_step(config, optimizer)(state, batch._replace(weights=weights))

    return jax.jit(step, donate_argnums=0)


def _require_strikes(faults: Sequence[Fault]) -> None:
    if not faults:
        raise ValueError("there is no fault to plant; without one, leave out make_step")
    steps = [fault.step for fault in faults]
    for fault in faults:
        if fault.place not in list(Place):
            raise ValueError(f"place = {fault.place!r} is none of {', '.join(map(str, Place.__members__))} (`Place`)")
        if fault.step != int(fault.step) or fault.step < 1:
            raise ValueError(f"step = {fault.step} is no step of a run: they are counted from 1")
        if steps.count(fault.step) > 1:
            raise ValueError(f"step {int(fault.step)} has {steps.count(fault.step)} faults; one step takes one")


def resolve(fault: Fault, params: Any) -> Fault:
    """The fault with its leaf as the index among the leaves of the parameters, and plain numbers.

    Raises:
      ValueError: there is no such leaf; the message lists what there is.
    """
    leaf, names = fault.leaf, leaf_names(params, ())
    if leaf not in (names if isinstance(leaf, str) else range(len(names))):
        raise ValueError(f"there is no parameter {leaf!r}, only {', '.join(names)}")
    if isinstance(leaf, str):
        leaf = names.index(leaf)
    return Fault(int(fault.place), fault.step, fault.value, leaf)


def _of_step(faults: Sequence[Fault], step: Array) -> Fault:
    """The fault of one step, a place of -1 where there is none; so many faults compile as fast as one."""
    strikes = jnp.array([fault.step for fault in faults]) == step + 1
    places, values, leaves = (
        jnp.array([getattr(fault, name) for fault in faults])[jnp.argmax(strikes)]
        for name in ("place", "value", "leaf")
    )
    return Fault(jnp.where(strikes.any(), places, -1), step + 1, values, leaves)


def _optimizer(config: Config, fault: Fault, decays: Any) -> optax.GradientTransformationExtraArgs:
    training = config.training
    schedule = make_schedule(config.optimizer, training.max_steps)
    honest = langevin_adamw(config.optimizer, schedule, training.seed, decays)

    def propose(grads: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        updates, state = honest.update(grads, state, params, **extra)
        updates = _plant(updates, fault, Place.UPDATE)
        return updates, _plant_moments(state, fault, Place.NEW_FIRST_MOMENT, Place.NEW_SECOND_MOMENT)

    guard = guarded(optax.GradientTransformationExtraArgs(honest.init, propose), config.optimizer)

    def update(grads: Any, state: Any, params: Any = None, *, loss: Array, **extra: Any) -> tuple[Any, Any]:
        loss = jnp.where(fault.place == int(Place.LOSS), fault.value, loss)
        return guard.update(_plant(grads, fault, Place.GRADIENT), state, params, loss=loss, **extra)

    return optax.GradientTransformationExtraArgs(guard.init, update)


def _plant(tree: Any, fault: Fault, place: Place) -> Any:
    # A masked leaf keeps its place, so that every leaf has the number of its parameter.
    leaves, structure = jax.tree.flatten(tree, is_leaf=_is_masked)
    here = [(fault.place == int(place)) & (fault.leaf == i) for i in range(len(leaves))]
    planted = [
        leaf if _is_masked(leaf) else _plant_entry(leaf, strikes, fault.value)
        for leaf, strikes in zip(leaves, here, strict=True)
    ]
    return jax.tree.unflatten(structure, planted)


def _plant_moments(state: LangevinAdamWState, fault: Fault, first: Place, second: Place) -> LangevinAdamWState:
    direction = dict(state.direction)
    if "muon" in direction:
        # Each holds the moments of its own parameters, behind a mask.
        muon, *others = direction["muon"].inner_state
        muon = muon._replace(mu=_plant(muon.mu, fault, first))
        direction["muon"] = optax.MaskedState((muon, *others))
        direction["adam"] = optax.MaskedState(_plant_adam(direction["adam"].inner_state, fault, first, second))
    else:
        direction["adam"] = _plant_adam(direction["adam"], fault, first, second)
    return state._replace(direction=type(state.direction)(direction))


def _plant_adam(state: Any, fault: Fault, first: Place, second: Place) -> Any:
    return state._replace(mu=_plant(state.mu, fault, first), nu=_plant(state.nu, fault, second))


def _is_masked(leaf: Any) -> bool:
    return isinstance(leaf, optax.MaskedNode)


def _plant_entry(array: Array, here: Any, value: Any) -> Array:
    # As slices: a scatter for each leaf of each place would take most of the step's compile time.
    before = jax.lax.slice(array, (0,) * array.ndim, (1,) * array.ndim)
    if jnp.iscomplexobj(array):
        planted = jax.lax.complex(before.real, jnp.full_like(before.real, value))
    else:
        planted = jnp.full_like(before, value)
    return jax.lax.dynamic_update_slice(array, jnp.where(here, planted, before), (0,) * array.ndim)
