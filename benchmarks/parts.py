"""The parts of a model as contenders: each module alone, with random inputs of the size that a training step has."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from shapes import random_batch
from timing import Timing, bound, interleaved

from sem_jax.config import Config
from sem_jax.core.complex_ops import complex_matmul, complex_normal
from sem_jax.core.selective import selective_recurrence
from sem_jax.modules.block import Context
from sem_jax.modules.mixer import FixedSSM, Mixer, MixerState
from sem_jax.modules.model import SEM, scan_layers
from sem_jax.modules.propagator import Propagator
from sem_jax.modules.selective_mixer import SelectiveMixer, SelectiveSSM
from sem_jax.training.loss import token_losses


class Part(NamedTuple):
    """A function of a module and of inputs."""

    apply: Callable[..., Any]
    module: Any
    inputs: tuple[Any, ...]  # those of floating point get a gradient
    repeats: int = 1  # how many of it a step has, one for each layer


class Passes(NamedTuple):
    """Times of one contender."""

    forward: Timing
    training: Timing  # forward and backward


def parts_of(config: Config) -> dict[str, Part]:
    """By the names of `SEM.costs`, in the order of the data; and whole layers."""
    model = SEM(config.model, nnx.Rngs(params=0))
    return dict([*_encoder(model, config), *_layers(model, config), *_readout(model, config)])


def _wave(config: Config) -> Array:
    shape = config.training.global_batch, config.data.seq_length, config.model.hidden_dim
    return complex_normal(jax.random.key(0), shape, 1.0)


def _context(config: Config) -> Context:
    shape = config.training.global_batch, config.data.seq_length
    return Context(jnp.broadcast_to(jnp.arange(shape[1], dtype=jnp.int32), shape))


def _encoder(model: SEM, config: Config) -> Iterator[tuple[str, Part]]:
    tokens = jnp.asarray(random_batch(config).tokens[:, :-1])
    inputs = (tokens, model.encoder.initial_state(tokens.shape[0]), _context(config))
    yield "encoder", Part(lambda m, *args: m(*args)[0], model.encoder, inputs)


def _layers(model: SEM, config: Config) -> Iterator[tuple[str, Part]]:
    """The parts of one layer of each kind, one whole layer, and all of them as the model runs them."""
    depth, x, context = config.model.num_layers, _wave(config), _context(config)
    state = model.initial_state(config.training.global_batch)

    for kind, stacked in model.blocks.items():
        graphdef, variables = nnx.split(stacked)
        block = nnx.merge(graphdef, jax.tree.map(lambda leaf: leaf[0], variables))
        past = jax.tree.map(lambda leaf: leaf[0], state.blocks[kind])

        def whole(m, z, past, context):
            return m(z, past, context)[0]

        def all_layers(m, z, past, context, kind=kind):
            def step(blocks, z, past):
                return whole(blocks[kind], z, past, context), None

            return scan_layers({kind: m}, z, past, step, config.model.remat)[0]

        for name, (apply, module, *inputs) in PARTS_OF_LAYER[kind](block, x, past, context).items():
            yield name, Part(apply, module, tuple(inputs), depth)
        yield f"one of {kind}", Part(whole, block, (x, past, context), depth)
        yield f"all {kind}", Part(all_layers, stacked, (x, state.blocks[kind], context))


def _mixer(mixer: Mixer, x: Array, past: MixerState, context: Context) -> dict[str, tuple[Any, ...]]:
    ssm = _selective_ssm if isinstance(mixer, SelectiveMixer) else _fixed_ssm
    return {
        "norm": (lambda m, z: m.norm(z), mixer, x),
        mixer.INPUT[0]: (lambda m, z: m(z), mixer.input, x),
        "conv": (lambda m, *inputs: m(*inputs)[0], mixer.conv, x, past.taps, context.position),
        **({"amplitude_gate": (lambda m, z: m.amplitude_gate(z), mixer, x)} if "amplitude_gate" in mixer.PARTS else {}),
        **ssm(mixer.ssm, x, past.ssm, context.position),
        "out_proj": (lambda m, z, x: m.residual(x, complex_matmul(z, m.out_proj[...])), mixer, x, x),
    }


def _fixed_ssm(ssm: FixedSSM, x: Array, h0: Array, position: Array) -> dict[str, tuple[Any, ...]]:
    states = complex_normal(jax.random.key(1), (x.shape[1], *h0.shape), 1.0)
    dt, omega, entering = ssm.inputs(x)

    def recurrence(m: FixedSSM, dt: Array, omega: Array, entering: Array, h0: Array, starts: Array) -> Array:
        decay = jax.nn.softplus(m.decay[...])
        return selective_recurrence(dt, omega, decay, m.phase[...], entering, h0, starts, m.config.scan)

    return {
        "ssm/inputs": (lambda m, z: m.inputs(z), ssm, x),
        "ssm/scan": (recurrence, ssm, dt, omega, entering, h0, position.T == 0),
        "ssm/output": (lambda m, h: complex_matmul(h, m.out_proj[...]), ssm, states),
    }


def _selective_ssm(ssm: SelectiveSSM, x: Array, h0: Array, position: Array) -> dict[str, tuple[Any, ...]]:
    return {
        "ssm/inputs": (lambda m, z: (m.queries_and_keys(z), m.step_sizes(z)), ssm, x),
        "ssm": (lambda m, *inputs: m(*inputs)[0], ssm, x, h0, position),
    }


def _propagator(propagator: Propagator, x: Array, past: tuple[()], context: Context) -> dict[str, tuple[Any, ...]]:
    del past, context
    parts: dict[str, tuple[Any, ...]] = {"kerr": (lambda m, z: m.kerr(z), propagator, x)}
    if propagator.config.solver == "dense":
        parts["cayley/unitary"] = (lambda m: jax.lax.stop_gradient(m.prepare().solution), propagator)
    return parts


# The parts of one layer that are timed by themselves: (function, module, inputs).
PARTS_OF_LAYER: dict[str, Callable[..., dict[str, tuple[Any, ...]]]] = {"mixers": _mixer, "propagators": _propagator}


class _Head(nnx.Module):
    """What a loss needs of a model."""

    def __init__(self, model: SEM):
        self.config = model.config
        self.readout = model.readout


def _readout(model: SEM, config: Config) -> Iterator[tuple[str, Part]]:
    targets, unitary_lambda = jnp.asarray(random_batch(config).tokens[:, 1:]), config.optimizer.unitary_lambda

    def loss(head: Any, psi: Array, y: Array) -> Array:
        return token_losses(head, psi, y, unitary_lambda)[0]

    yield "readout", Part(loss, _Head(model), (_wave(config), targets))


def as_function(part: Part) -> tuple[Callable[[Any, Any], Any], Any, Any]:
    """(function(moving, fixed), moving, fixed) of a part: parameters and inputs of floating point get a gradient."""
    graphdef, params, rest = nnx.split(part.module, nnx.Param, ...)
    moving = [x if _is_floating(x) else None for x in part.inputs]
    fixed = [None if _is_floating(x) else x for x in part.inputs]

    def apply(moving, fixed):
        inputs = [y if x is None else x for x, y in zip(moving[1], fixed[1], strict=True)]
        return part.apply(nnx.merge(graphdef, moving[0], fixed[0]), *inputs)

    return apply, (params, moving), (rest, fixed)


def passes(part: Part) -> dict[str, Callable[[], Any]]:
    """`both_passes` of a part."""
    return both_passes(*as_function(part))


def both_passes(function: Callable[..., Any], moving: Any, fixed: Any = ()) -> dict[str, Callable[[], Any]]:
    """function(moving, fixed) as two compiled contenders: "forward", and "training", with the gradient in `moving`."""

    def training(moving, fixed, cotangents):
        outputs, pull_back = jax.vjp(lambda x: function(x, fixed), moving)
        return outputs, pull_back(jax.tree.map(_cotangent, outputs, cotangents))

    outputs = jax.eval_shape(function, moving, fixed)
    cotangents = jax.tree.map(lambda y: jnp.full(y.shape, 0.7, y.dtype), outputs)
    return {"forward": bound(function, moving, fixed), "training": bound(training, moving, fixed, cotangents)}


def time_passes(contenders: Mapping[str, Mapping[str, Callable[[], Any]]], seconds: float) -> dict[str, Passes]:
    """Times the `both_passes` of several contenders, all in turns."""
    runs = {f"{name} {kind}": run for name, both in contenders.items() for kind, run in both.items()}
    times = interleaved(runs, seconds)
    return {name: Passes(times[f"{name} forward"], times[f"{name} training"]) for name in contenders}


def _is_floating(tree: Any) -> bool:
    return all(jnp.issubdtype(leaf.dtype, jnp.inexact) for leaf in jax.tree.leaves(tree))


def _cotangent(output: Array, given: Array) -> Any:
    return given if jnp.issubdtype(output.dtype, jnp.inexact) else jnp.zeros(output.shape, jax.dtypes.float0)
