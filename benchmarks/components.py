"""Where does the time of a training step go, and how far is each component from what the machine can do?

Command:  python benchmarks/components.py [--shapes=char,d256] [--seconds=2] [--remat=none] [--solver=dense]
          [--json=FILE]

Times each component of the default model alone, forward and forward with backward (the vector-Jacobian product of a
cotangent to its parameters and its input): one layer of it, compiled by itself, times the number of layers. "all mixers"
and "all propagators" are the loops over the layers as the model runs them. Beside them stand the FLOPs that a component
needs (`benchmarks/flops.py`), the rate at which it does them, and its floor: the time in which the machine's own matrix
product would do these FLOPs, or a copy would move the bytes that the component must read and write, whichever is longer.
Alone, a component is not fused with its neighbours and its data stay in the cache, so the sum of the parts is not the
whole step, which stands last.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from absl import app, flags
from flax import nnx
from flops import Cost, needed, step_costs
from jax import Array
from shapes import SHAPES, configuration, random_batch, shape_of
from timing import Machine, Timing, bound, compiled, interleaved, machine, milliseconds, table, write_json

from sem_jax.config import Config
from sem_jax.core.cayley import dense_unitary
from sem_jax.core.complex_ops import abs_sq, complex_matmul, complex_normal, one_minus_exp_neg, rms_norm
from sem_jax.data import Batch
from sem_jax.losses import batch_loss, born_loss
from sem_jax.modules.encoder import Encoder
from sem_jax.modules.mixer import Mixer, MixerState
from sem_jax.modules.model import init_model, scan_layers, stack_layers
from sem_jax.modules.propagator import Propagator
from sem_jax.modules.readout import Readout
from sem_jax.optim import make_optimizer
from sem_jax.training.state import init_state, start_state
from sem_jax.training.step import make_train_step

_SHAPES = flags.DEFINE_list("shapes", ["char", "d256"], "Names of shapes, of benchmarks/shapes.py.")
_SECONDS = flags.DEFINE_float("seconds", 2.0, "Time for each component.")
_REMAT = flags.DEFINE_string("remat", "none", "What the backward pass of the whole step recomputes.")
_SOLVER = flags.DEFINE_string("solver", "dense", "Of the Cayley step.")
_JSON = flags.DEFINE_string("json", "", "File for the same numbers.")


class Component(NamedTuple):
    """One part of the model: a function of its module and its inputs."""

    apply: Callable[..., Any]
    module: Any
    inputs: tuple[Any, ...]  # those of floating point get a gradient
    layers: int = 1  # how many a step has


class Measured(NamedTuple):
    """Of one component in a whole step."""

    forward: Timing | None
    training: Timing
    flops: float
    floor: float  # seconds


def mixer_parts(config: Config, key: Array) -> Iterator[tuple[str, Component]]:
    model, tokens = config.model, (config.training.global_batch, config.data.seq_length)
    mixer, layers = Mixer(model, nnx.Rngs(params=1)), config.model.num_layers
    batch, length = tokens
    position = jnp.broadcast_to(jnp.arange(length, dtype=jnp.int32), tokens)
    x = complex_normal(key, (*tokens, model.hidden_dim), 1.0)
    groups, states = model.mixer.num_groups, model.mixer.state_dim
    h = complex_normal(key, (length, batch, groups, states), 1.0)
    h0 = jnp.zeros((batch, groups, states), h.dtype)
    taps = jnp.zeros((batch, model.mixer.conv_width - 1, model.hidden_dim), x.dtype)
    a = 0.5 * h / jnp.maximum(jnp.abs(h), 1)

    def out_projection(module: Mixer, z: Array, x: Array) -> Array:
        z = complex_matmul(z, module.out_proj[...])
        return x + module.residual_scale[...] * (z * module.output_scale[...])

    def amplitude_gate(module: Mixer, z: Array) -> Array:
        return z * one_minus_exp_neg(abs_sq(z) * jnp.exp(module.activation_threshold[...]))

    yield "norm", Component(lambda m, z: rms_norm(z, m.norm_gamma[...]), mixer, (x,), layers)
    yield "spinor gate", Component(lambda m, z: m(z), mixer.spinor_gate, (x,), layers)
    yield "convolution", Component(lambda m, z, *past: m(z, *past)[0], mixer.conv, (x, taps, position), layers)
    yield "amplitude gate", Component(amplitude_gate, mixer, (x,), layers)
    yield "SSM input", Component(lambda m, z, pos: m.recurrence(z, pos), mixer.ssm, (x, position), layers)
    yield "SSM scan", Component(lambda m, *args: m.states(*args)[0], mixer.ssm, (a, h, h0, position), layers)
    yield (
        "SSM output",
        Component(lambda m, h: complex_matmul(jnp.swapaxes(h, 0, 1), m.out_proj[...]), mixer.ssm, (h,), layers),
    )
    yield "out projection", Component(out_projection, mixer, (x, x), layers)
    yield (
        "whole mixer",
        Component(lambda m, z, *past: m(z, *past)[0], mixer, (x, MixerState(taps, h0), position), layers),
    )


def propagator_parts(config: Config, key: Array) -> Iterator[tuple[str, Component]]:
    model, layers = config.model, config.model.num_layers
    propagator = Propagator(model, seed=0)
    psi = complex_normal(key, (config.training.global_batch, config.data.seq_length, model.hidden_dim), 1.0)
    h = model.propagator.cayley_dt / 2

    def unitary(module: Propagator) -> Array:
        return jax.lax.stop_gradient(dense_unitary(module.hamiltonian().matrix, jnp.asarray(h)))

    yield "Kerr phase", Component(lambda m, x: m.kerr(x), propagator, (psi,), layers)
    yield "U of H", Component(unitary, propagator, (), layers)
    yield "one propagator", Component(lambda m, x: m(x), propagator, (psi,), layers)
    stacked = stack_layers([propagator] * layers)
    yield (
        "all propagators",
        Component(lambda m, x: scan_layers(m, x, None, lambda m, z, _: m(z), model.remat), stacked, (psi,)),
    )


def ends(config: Config, key: Array) -> Iterator[tuple[str, Component]]:
    model = config.model
    batch = random_batch(config)
    inputs, targets = jnp.asarray(batch.tokens[:, :-1]), jnp.asarray(batch.tokens[:, 1:])
    encoder = Encoder(model, nnx.Rngs(params=2))
    position = jnp.broadcast_to(jnp.arange(inputs.shape[1], dtype=jnp.int32), inputs.shape)
    psi = complex_normal(key, (*inputs.shape, model.hidden_dim), 1.0)
    state = encoder.initial_state(inputs.shape[0])
    yield "encoder", Component(lambda m, *args: m(*args)[0], encoder, (inputs, position, state))

    class Head(nnx.Module):
        """What `born_loss` needs of a model."""

        def __init__(self):
            self.readout = Readout(model, nnx.Rngs(params=3))

    yield (
        "likelihood and Gram matrix",
        Component(lambda m, x, y: born_loss(m, x, y, config.optimizer.unitary_lambda)[0], Head(), (psi, targets)),
    )


def both_passes(component: Component) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """(forward, forward and backward) of one layer."""
    graphdef, params, rest = nnx.split(component.module, nnx.Param, ...)
    is_floating = [all(jnp.issubdtype(x.dtype, jnp.inexact) for x in jax.tree.leaves(x)) for x in component.inputs]
    fixed = [None if f else x for f, x in zip(is_floating, component.inputs, strict=True)]
    moving = [x if f else None for f, x in zip(is_floating, component.inputs, strict=True)]

    def forward(params, rest, moving, fixed):
        inputs = [y if x is None else x for x, y in zip(moving, fixed, strict=True)]
        return component.apply(nnx.merge(graphdef, params, rest), *inputs)

    def training(params, rest, moving, fixed, cotangent):
        outputs, pull_back = jax.vjp(lambda p, x: forward(p, rest, x, fixed), params, moving)
        floats = jax.tree.map(
            lambda y, c: c if jnp.issubdtype(y.dtype, jnp.inexact) else jnp.zeros(y.shape, jax.dtypes.float0),
            outputs, cotangent,
        )  # fmt: skip
        return outputs, pull_back(floats)

    shapes = jax.eval_shape(forward, params, rest, moving, fixed)
    cotangent = jax.tree.map(lambda y: jnp.full(y.shape, 0.7, y.dtype), shapes)
    return bound(forward, params, rest, moving, fixed), bound(training, params, rest, moving, fixed, cotangent)


def optimizer_contender(config: Config) -> Callable[[], Any]:
    """Guard and optimizer alone, on donated state as in the step."""
    parts = init_model(config.model, 0)
    optimizer = make_optimizer(config.optimizer, config.training.max_steps, 0)
    state = start_state(config, parts)
    grads = jax.tree.map(lambda p: jnp.full_like(p, 1e-3), state.params)

    def update(params, moments, grads):
        updates, moments = optimizer.update(grads, moments, params, loss=jnp.float32(1.0), step=state.step)
        return jax.tree.map(jnp.add, params, updates), moments

    carried = [state.params, state.opt_state]
    program = compiled(jax.jit(update, donate_argnums=(0, 1)), *carried, grads).call

    def run():
        carried[:] = program(*carried, grads)
        return carried

    return run


def step_contender(config: Config) -> Callable[[], Any]:
    """The whole training step."""
    parts, state = init_state(config)
    batch = random_batch(config)
    program = compiled(make_train_step(parts.graphdef, config), state, batch).call
    carried = [state]

    def run():
        carried[0], metrics = program(carried[0], batch)
        return metrics

    return run


def model_contenders(config: Config) -> dict[str, Callable[[], Any]]:
    """The whole model and its loss without guard and optimizer: forward, and with the gradient."""
    parts = init_model(config.model, 0)
    batch = Batch(*map(jnp.asarray, random_batch(config)))

    def loss(params, buffers, batch):
        model = nnx.merge(parts.graphdef, params, buffers)
        tokens, resets, weights = batch
        sums, stats, _ = batch_loss(
            model, tokens[:, :-1], tokens[:, 1:], resets[:, :-1], weights, config.optimizer.unitary_lambda
        )
        return sums.loss, stats

    arguments = parts.params, parts.buffers, batch
    return {"forward": bound(loss, *arguments), "gradient": bound(jax.value_and_grad(loss, has_aux=True), *arguments)}


MIXER = (
    "norm", "spinor gate", "convolution", "amplitude gate", "SSM input", "SSM scan", "SSM output", "out projection",
)  # fmt: skip
PROPAGATOR = ("Kerr phase", "U of H", "Cayley step", "residual")
MERGED = {  # a component here: those of the FLOP model that it consists of
    "one mixer": MIXER,
    "all mixers": MIXER,
    "one propagator": PROPAGATOR,
    "all propagators": PROPAGATOR,
    "likelihood and Gram matrix": ("Gram matrix", "likelihood"),
}


def cost_of(name: str, costs: dict[str, Cost]) -> Cost:
    """Of a component; a whole layer's inputs and outputs are those of one wave."""
    parts = [costs[part] for part in MERGED.get(name, (name,))]
    ends = [costs["norm"]] if len(parts) > 2 else parts
    return Cost(
        forward=sum(cost.forward for cost in parts),
        backward=sum(cost.backward for cost in parts),
        inputs=sum(cost.inputs for cost in ends),
        outputs=sum(cost.outputs for cost in ends),
    )


def measure(config: Config, host: Machine) -> dict[str, Measured]:
    """Of every component, of the whole gradient and of the whole step."""
    key, costs = jax.random.key(0), step_costs(config)
    parts = dict([*ends(config, key), *mixer_parts(config, key), *propagator_parts(config, key)])
    results = {}
    for name, component in parts.items():
        forward, training = both_passes(component)
        times = interleaved({"forward": forward, "training": training}, _SECONDS.value)
        scaled = [
            Timing(*(component.layers * t for t in times[k][:3]), times[k].calls) for k in ("forward", "training")
        ]
        results[name] = measured(cost_of(name, costs), *scaled, host)
    contenders = {"optimizer": optimizer_contender(config), "step": step_contender(config)} | model_contenders(config)
    times = interleaved(contenders, 2 * _SECONDS.value)
    total = Cost(needed(config), 0)
    results["optimizer"] = measured(costs["optimizer"], None, times["optimizer"], host)
    results["whole gradient"] = measured(total, times["forward"], times["gradient"], host)
    results["whole step"] = measured(total, None, times["step"], host)
    return results


def measured(cost: Cost, forward: Timing | None, training: Timing, host: Machine) -> Measured:
    return Measured(forward, training, cost.training, max(cost.training / host.gemm, cost.traffic / host.copy_rate))


def report(config: Config, host: Machine, results: dict[str, Measured]) -> str:
    step = results["whole step"]
    rows = [
        [
            name,
            milliseconds(m.forward) if m.forward else "",
            milliseconds(m.training),
            f"{100 * m.training.median / step.training.median:.0f}",
            f"{m.flops / 1e6:,.0f}",
            f"{m.flops / m.training.median / 1e9:.1f}",
            f"{1e3 * m.floor:.2f}",
            f"{m.training.median / m.floor:.1f}",
        ]
        for name, m in results.items()
    ]
    header = ["component, all layers", "forward, ms", "with backward, ms", "% of step", "MFLOP", "GFLOP/s"]
    speed, rate = (amount / step.training.median for amount in (shape_of(config).tokens, step.flops))
    summary = f"{speed:,.0f} tokens/s; {100 * rate / host.gemm:.0f} % of the matrix-product rate"
    return table([*header, "floor, ms", "times floor"], rows) + "\n\n" + summary


def main(argv: list[str]) -> None:
    del argv
    host = machine()
    print(host.describe(), flush=True)
    saved: dict[str, Any] = {"machine": host}
    for name in _SHAPES.value:
        config = configuration(SHAPES[name], {"remat": _REMAT.value, "propagator.solver": _SOLVER.value})
        saved[name] = measure(config, host)
        print(f"\n{name}: {SHAPES[name]}, remat {_REMAT.value}\n\n{report(config, host, saved[name])}", flush=True)
    if _JSON.value:
        write_json(_JSON.value, saved)


if __name__ == "__main__":
    app.run(main)
