"""One trial: a rival of a given size, trained by the package's own step on batches of a task."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
from jax import Array

from arena.rivals import RIVALS, Answers, installed
from sem_jax.config import Config, build, default
from sem_jax.data import Batch
from sem_jax.modules.cost import COMPLEX_MULTIPLY_ADD, MULTIPLY_ADD
from sem_jax.modules.model import ModelParts, abstract_model, count_parameters
from sem_jax.training.host import single_threaded_lapack
from sem_jax.training.state import TrainState, init_state
from sem_jax.training.step import StepMetrics, make_train_step


@dataclass(frozen=True)
class Budget:
    """What all rivals of a table share."""

    parameters: int
    vocabulary: int
    steps: int
    batch: int
    tags: bool = False  # tokens are pairs, see `arena.rivals.tagged`
    weight_decay: float = 0.1


class Trial(NamedTuple):
    """What trials that train in one program do not share."""

    rate: float
    seed: int
    batch: Callable[[int], Batch]  # by number, of the same shape in all of them


class Trained(NamedTuple):
    """What a trial leaves behind."""

    parts: ModelParts
    losses: np.ndarray  # nats a target in training, [steps]
    grad_norms: np.ndarray  # before clipping, [steps]
    skipped: int  # steps that the guard refused


@functools.cache
def configure(name: str, budget: Budget, layers: int, rate: float, dim: int = 0) -> Config:
    """The configuration of a rival at the width that comes closest to the budget's parameters, or at `dim`."""
    dim = dim or matching_dim(name, budget, layers)
    steps = budget.steps
    config = default()
    config.model.update(hidden_dim=dim, num_layers=layers, layout="interleaved", vocab_size=budget.vocabulary)
    config.model.mixer.update(num_groups=8, num_heads=4, state_dim=16)
    config.model.update_from_flattened_dict(dict(RIVALS[name].fields))
    config.optimizer.update(matrices="muon", learning_rate=rate, b2=0.99, weight_decay=budget.weight_decay)
    config.optimizer.lr_factors = "encoder={0},readout={0}".format(RIVALS[name].ends)
    config.optimizer.update(warmup_steps=steps // 20, decay_steps=steps * 3 // 4, lr_min_ratio=0.03)
    config.training.update(max_steps=steps, global_batch=budget.batch, micro_batch=budget.batch)
    return build(config)


@functools.cache
def matching_dim(name: str, budget: Budget, layers: int) -> int:
    """The multiple of 8 whose parameters come closest to the budget's, by their ratio."""

    def distance(dim: int) -> float:
        return abs(math.log(parameters(name, budget, layers, dim) / budget.parameters))

    high = 16
    while parameters(name, budget, layers, high) < budget.parameters:
        high += 8
    return min(high - 8, high, key=distance)


@functools.cache
def parameters(name: str, budget: Budget, layers: int, dim: int = 0) -> int:
    """Real parameters of a rival; a complex one counts twice."""
    config = configure(name, budget, layers, 1e-3, dim)
    with _installed(name, budget):
        return count_parameters(abstract_model(config.model).params)


def train(name: str, budget: Budget, layers: int, trials: Sequence[Trial]) -> list[Trained]:
    """Trains a rival once for each trial: a step of each in turn, all in one program, compiled once."""
    config = configure(name, budget, layers, trials[0].rate)
    rates, losses, norms = jnp.asarray([trial.rate for trial in trials]), [], []
    with single_threaded_lapack(), _installed(name, budget):
        step = _step_of_all(name, budget, layers)
        starts = {
            seed: init_state(replace(config, training=replace(config.training, seed=seed)))
            for seed in {trial.seed for trial in trials}
        }
        state = _stacked([starts[trial.seed] for trial in trials])
        for number in range(budget.steps):
            state, metrics = step(state, _stacked([trial.batch(number) for trial in trials]), rates)
            losses.append(metrics.nll)
            norms.append(metrics.grad_norm)
    values = [np.asarray(jnp.stack(each, axis=1)) for each in (losses, norms)]
    models = [jax.tree.map(lambda leaf, i=i: leaf[i], state.model) for i in range(len(trials))]
    return [Trained(*each) for each in zip(models, *values, map(int, metrics.skipped), strict=True)]


def _stacked(trees: Sequence[Any]) -> Any:
    """Trees of arrays as one, with a leading axis."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


@functools.cache
def _step_of_all(name: str, budget: Budget, layers: int) -> Callable[..., tuple[TrainState, StepMetrics]]:
    """The package's step for a leading axis of states and batches, each at a learning rate of its own."""

    def step(state: TrainState, batch: Batch, rate: Array) -> tuple[TrainState, StepMetrics]:
        config = configure(name, budget, layers, 1e-3)
        return make_train_step(replace(config, optimizer=replace(config.optimizer, learning_rate=rate)))(state, batch)

    # On a CPU, `vmap` in the place of the loop takes half as long again: its products are batched ones.
    return jax.jit(lambda *all_of: jax.lax.map(lambda each: step(*each), all_of), donate_argnums=0)


def step_ms(name: str, budget: Budget, layers: int, batch: Batch, calls: int = 20) -> float:
    """Milliseconds of a step of one trial, the median of several.

    Of processor time: what else the machine does matters little.
    """
    config, times = configure(name, budget, layers, 1e-3), []
    with single_threaded_lapack(), _installed(name, budget):
        step, state = make_train_step(config), init_state(config)
        for _ in range(calls):
            start = time.process_time()
            state, _ = jax.block_until_ready(step(state, batch))
            times.append(time.process_time() - start)
    return round(1e3 * float(np.median(times)), 2)


def step_gflop(name: str, budget: Budget, layers: int, batch: Batch) -> float:
    """GFLOP of a step of one trial: the products of the forward pass, three times, as each factor gets a gradient."""
    config = configure(name, budget, layers, 1e-3)
    with _installed(name, budget):
        parts = abstract_model(config.model)
        forward = jax.make_jaxpr(functools.partial(_judge, vocabulary=budget.vocabulary))
        return round(3 * products(forward(parts, *map(jnp.asarray, (batch.tokens, batch.resets))).jaxpr) / 1e9, 3)


def products(jaxpr: jax.extend.core.Jaxpr) -> float:
    """FLOPs of the matrix products in a program, those in loops of known length as often as they run."""
    total = 0.0
    for equation in jaxpr.eqns:
        inner = [each for value in equation.params.values() for each in jax.tree.leaves(value, is_leaf=_is_jaxpr)]
        times = equation.params["length"] if equation.primitive.name == "scan" else 1
        total += times * sum(products(getattr(each, "jaxpr", each)) for each in inner if _is_jaxpr(each))
        if equation.primitive.name == "dot_general":
            left, out = equation.invars[0].aval, equation.outvars[0].aval
            (contracted, _), _ = equation.params["dimension_numbers"]
            multiply_add = COMPLEX_MULTIPLY_ADD if jnp.iscomplexobj(out) else MULTIPLY_ADD
            total += multiply_add * out.size * math.prod(left.shape[axis] for axis in contracted)
    return total


def _is_jaxpr(value: Any) -> bool:
    return isinstance(value, (jax.extend.core.Jaxpr, jax.extend.core.ClosedJaxpr))


def trial_values(name: str, budget: Budget, layers: int, found: Trained) -> dict[str, Any]:
    """What every cell says of its trial."""
    return {
        "loss": round(float(found.losses[-50:].mean()), 4),  # nats a target, of the last 50 batches
        "grad_norm": float(f"{np.max(found.grad_norms[-50:]):.3g}"),  # before clipping, the largest of the same
        "skipped": found.skipped,
        "dim": matching_dim(name, budget, layers),
        "parameters": parameters(name, budget, layers),
    }


def judge(name: str, budget: Budget, parts: ModelParts, batch: Batch) -> tuple[np.ndarray, np.ndarray]:
    """(nats, whether the likeliest answer is the right one) of every target of a batch, [B, S] each."""
    with single_threaded_lapack(), _installed(name, budget):
        nats, right = _judge(parts, jnp.asarray(batch.tokens), jnp.asarray(batch.resets), budget.vocabulary)
    return np.asarray(nats), np.asarray(right)


@functools.partial(jax.jit, static_argnames="vocabulary")
def _judge(parts: ModelParts, tokens: Array, resets: Array, vocabulary: int) -> tuple[Array, Array]:
    model, targets = parts.merge(), tokens[:, 1:]
    psi, _, _ = model(tokens[:, :-1], resets=resets[:, :-1])
    likeliest = jnp.argmax(model.readout.log_probs(psi), axis=-1)
    answers = targets // vocabulary if isinstance(model.readout, Answers) else targets
    return -model.readout.target_log_prob(psi, targets)[0], likeliest == answers


def _installed(name: str, budget: Budget) -> AbstractContextManager[None]:
    return installed(RIVALS[name], budget.vocabulary if budget.tags else 0)
