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
from sem_jax.core.cayley import dense_unitary
from sem_jax.core.complex_ops import abs_sq, complex_matmul, complex_normal, one_minus_exp_neg, rms_norm
from sem_jax.core.selective import selective_recurrence
from sem_jax.modules.encoder import Encoder
from sem_jax.modules.mixer import Mixer, MixerState, SelectiveSSM
from sem_jax.modules.model import scan_layers, stack_layers
from sem_jax.modules.propagator import Propagator
from sem_jax.modules.readout import Readout
from sem_jax.training.loss import born_loss


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
    """By name, in the order of the data."""
    return dict([*_encoder(config), *_mixer_steps(config), *_ssm(config), *_layers(config), *_readout(config)])


def _wave(config: Config) -> Array:
    shape = config.training.global_batch, config.data.seq_length, config.model.hidden_dim
    return complex_normal(jax.random.key(0), shape, 1.0)


def _position(config: Config) -> Array:
    shape = config.training.global_batch, config.data.seq_length
    return jnp.broadcast_to(jnp.arange(shape[1], dtype=jnp.int32), shape)


def _past(config: Config) -> MixerState:
    """The state before the first token."""
    model, batch = config.model, config.training.global_batch
    taps = jnp.zeros((batch, model.mixer.conv_width - 1, model.hidden_dim), jnp.complex64)
    return MixerState(taps, jnp.zeros((batch, model.mixer.num_groups, model.mixer.state_dim), jnp.complex64))


def _encoder(config: Config) -> Iterator[tuple[str, Part]]:
    encoder = Encoder(config.model, nnx.Rngs(params=2))
    tokens = jnp.asarray(random_batch(config).tokens[:, :-1])
    inputs = (tokens, _position(config), encoder.initial_state(tokens.shape[0]))
    yield "encoder", Part(lambda m, *args: m(*args)[0], encoder, inputs)


def _mixer_steps(config: Config) -> Iterator[tuple[str, Part]]:
    layers, x = config.model.num_layers, _wave(config)
    mixer = Mixer(config.model, nnx.Rngs(params=1))

    def amplitude_gate(module: Mixer, z: Array) -> Array:
        return z * one_minus_exp_neg(abs_sq(z) * jnp.exp(module.activation_threshold[...]))

    def out_projection(module: Mixer, z: Array, x: Array) -> Array:
        z = complex_matmul(z, module.out_proj[...])
        return x + module.residual_scale[...] * (z * module.output_scale[...])

    past = (_past(config).taps, _position(config))
    yield "norm", Part(lambda m, z: rms_norm(z, m.norm_gamma[...]), mixer, (x,), layers)
    yield "spinor gate", Part(lambda m, z: m(z), mixer.spinor_gate, (x,), layers)
    yield "convolution", Part(lambda m, z, *past: m(z, *past)[0], mixer.conv, (x, *past), layers)
    yield "amplitude gate", Part(amplitude_gate, mixer, (x,), layers)
    yield "out projection", Part(out_projection, mixer, (x, x), layers)


def _ssm(config: Config) -> Iterator[tuple[str, Part]]:
    layers, position = config.model.num_layers, _position(config)
    ssm = Mixer(config.model, nnx.Rngs(params=1)).ssm
    h0 = _past(config).ssm
    h = complex_normal(jax.random.key(1), (config.data.seq_length, *h0.shape), 1.0)
    dt, omega, inputs = ssm.inputs(_wave(config))

    def recurrence(module: SelectiveSSM, dt: Array, omega: Array, inputs: Array, h0: Array, starts: Array) -> Array:
        decay = jax.nn.softplus(module.decay[...])
        return selective_recurrence(dt, omega, decay, module.phase[...], inputs, h0, starts, config.model.mixer.scan)

    yield "SSM input", Part(lambda m, z: m.inputs(z), ssm, (_wave(config),), layers)
    yield "SSM scan", Part(recurrence, ssm, (dt, omega, inputs, h0, position.T == 0), layers)
    yield "SSM output", Part(lambda m, h: complex_matmul(h, m.out_proj[...]), ssm, (h,), layers)


def _layers(config: Config) -> Iterator[tuple[str, Part]]:
    """Whole layers, one alone and all of them as the model runs them, and what a propagator consists of."""
    model, layers, x = config.model, config.model.num_layers, _wave(config)
    position, past = _position(config), _past(config)
    mixer, propagator = Mixer(model, nnx.Rngs(params=1)), Propagator(model, seed=0)
    h = jnp.float32(model.propagator.cayley_dt / 2)

    def unitary(module: Propagator) -> Array:
        return jax.lax.stop_gradient(dense_unitary(module.hamiltonian().matrix, h))

    def all_mixers(stacked, z, pasts, position):
        return scan_layers(stacked, z, pasts, lambda m, z, past: m(z, past, position), model.remat)[0]

    def all_propagators(stacked, z):
        return scan_layers(stacked, z, None, lambda m, z, _: m(z), model.remat)

    pasts = jax.tree.map(lambda leaf: jnp.stack([leaf] * layers), past)
    yield "one mixer", Part(lambda m, z, *past: m(z, *past)[0], mixer, (x, past, position), layers)
    yield "all mixers", Part(all_mixers, stack_layers([mixer] * layers), (x, pasts, position))
    yield "Kerr phase", Part(lambda m, z: m.kerr(z), propagator, (x,), layers)
    if model.propagator.solver == "dense":
        yield "U of H", Part(unitary, propagator, (), layers)
    yield "one propagator", Part(lambda m, z: m(z), propagator, (x,), layers)
    yield "all propagators", Part(all_propagators, stack_layers([propagator] * layers), (x,))


class _Head(nnx.Module):
    """What `born_loss` needs of a model."""

    def __init__(self, config: Config):
        self.readout = Readout(config.model, nnx.Rngs(params=3))


def _readout(config: Config) -> Iterator[tuple[str, Part]]:
    targets, unitary_lambda = jnp.asarray(random_batch(config).tokens[:, 1:]), config.optimizer.unitary_lambda
    yield (
        "likelihood and Gram matrix",
        Part(lambda m, psi, y: born_loss(m, psi, y, unitary_lambda)[0], _Head(config), (_wave(config), targets)),
    )


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
