"""Trains one cause of the stability study, all seeds at once, and records what happened; see `stability.py`."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from causes import FIXED, Cause, Program, bf16, build_model, make_optimizer
from flax import nnx
from jax import Array

from sem_jax.config import Config, build, default, with_vocabulary
from sem_jax.core.graph import combine_scales, to_dense
from sem_jax.data import Batch, Dataset, open_dataset
from sem_jax.modules.model import ModelParts, split_model
from sem_jax.optim import make_schedule
from sem_jax.training.step import model_loss

Params = dict[str, Any]
CHUNK = 50  # steps in one call of the compiled function
POINT = 10  # steps in one point of the curves of loss and residual
DIVERGED_MARGIN = 1.0  # nats above the uniform distribution over the vocabulary
DIVERGED_STEPS = 50  # in a row


class Carry(NamedTuple):
    """What one run hands from step to step."""

    params: Params
    opt_state: optax.OptState
    answers: Array  # [L, B, S, D], of the propagators to the previous batch, where a warm start begins


class StepRecord(NamedTuple):
    """Scalars of one step of one run."""

    nll: Array  # −log P of the normalised distribution, nats a token
    finite: Array  # bool: loss, gradients, and parameters after the step
    residual: Array  # largest of all layers and tokens
    norm_error: Array  # the same


@dataclass
class Run:
    """One seed under one cause."""

    nll: list[float] = field(default_factory=list)  # of each step
    residual: list[float] = field(default_factory=list)  # of each step
    norm_error: list[float] = field(default_factory=list)  # of each step
    finite: list[bool] = field(default_factory=list)  # of each step
    h_lambda: list[float] = field(default_factory=list)  # largest of the layers, before each chunk and at the end
    edge_rms: list[float] = field(default_factory=list)  # raw edge weights, before softplus, at the same steps
    edge_max: list[float] = field(default_factory=list)
    edge_cosine: list[float] = field(default_factory=list)  # to the exact gradient, in the first step of each chunk


def configure(program: Program, steps: int, dim: int, layers: int) -> Config:
    """The fixed recipe at the size of the study with the solver of the program."""
    config = default()
    config.model.update(hidden_dim=dim, num_layers=layers)
    config.model.update(likelihood="born", layout="mixers_first")  # the original's, but for the normalised loss
    config.model.encoder.transport = "row_softmax"
    config.model.mixer.update(kind="fixed", num_groups=dim // 16)
    config.model.propagator.update(solver=program.solver, cg_max_iter=program.iterations, solver_tol=1e-7)
    config.model.propagator.update(cayley_dt=0.1, kerr_saturation=0.0, laplacian_sparsity=8)
    config.optimizer.update(learning_rate=FIXED.learning_rate, temperature=FIXED.temperature)
    config.optimizer.update(warmup_steps=steps // 10, decay_steps=0)
    config.data.update(tokenizer="byte", packing="windows", seq_length=32)
    config.training.update(max_steps=steps, global_batch=4, micro_batch=4)
    return build(config)


def open_data(config: Config, seeds: int) -> tuple[Config, list[Dataset]]:
    """The configuration with its vocabulary, and the corpus in the order of each seed."""
    datasets = [open_dataset(config.data, seed, config.training.global_batch) for seed in range(seeds)]
    return with_vocabulary(config, datasets[0].tokenizer.vocab_size), datasets


def initial_models(config: Config, seeds: int) -> tuple[Params, Params]:
    """(parameters with a leading axis of seeds, buffers): those of `init_model`, whose buffers know no seed."""

    def create(seed: Array) -> tuple[Params, Params]:
        parts = split_model(build_model(FIXED.program, config, nnx.Rngs(params=jax.random.key(seed))))
        return jax.tree.map(lambda x: x.astype(x.dtype), (parts.params, parts.buffers))  # strong types

    return jax.jit(jax.vmap(create, out_axes=(0, None)))(jnp.arange(seeds))


def structure(program: Program, config: Config) -> ModelParts:
    """A program's model without its arrays."""
    return jax.eval_shape(lambda: split_model(build_model(program, config, nnx.Rngs(params=jax.random.key(0)))))


def make_loss(program: Program, config: Config, buffers: Params) -> Callable:
    """(params, answers, batch) -> (loss, (nll, statistics of the propagators)); see `Carry`."""
    parts = structure(program, config)

    def loss(params: Params, answers: Array, batch: Batch):
        params = jax.tree.map(bf16, params) if program.bf16 else params
        memory = {"previous": answers} if program.warm_start else {}
        known = buffers | {"propagators": buffers["propagators"] | memory}
        sums, stats = model_loss(config, parts.replace(params=params, buffers=known), batch)
        return sums.loss / sums.weight, (sums.nll / sums.weight, stats.blocks["propagators"])

    return loss


def make_chunk(program: Program, config: Config, buffers: Params) -> Callable:
    """The compiled (carries, seeds, batches, lr, temperature, first step) -> (carries, records, first edge gradients).

    Carries, seeds, batches [seeds, CHUNK, ...] and the results have a leading axis of seeds.
    """
    warmup = make_schedule(dataclasses.replace(config.optimizer, learning_rate=1.0), config.training.max_steps)
    gradient = jax.value_and_grad(make_loss(program, config, buffers), has_aux=True)
    decays = structure(program, config).decays()

    def run(carry: Carry, seed: Array, batches: Batch, lr: Array, temperature: Array, start: Array):
        optimizer = make_optimizer(program, config, lambda step: lr * warmup(step), seed, temperature, decays)

        def step(state: tuple[Carry, Any], inputs: tuple[Array, Batch]):
            (params, opt_state, answers), first = state
            number, batch = inputs
            (loss, (nll, stats)), grads = gradient(params, answers, batch)
            answers = getattr(stats, "answer", answers)
            updates, moments = optimizer.update(grads, opt_state, params, step=number)
            proposal = optax.apply_updates(params, updates), moments
            finite = jnp.isfinite(loss) & all_finite(grads) & all_finite(proposal[0])
            if program.recovery:
                before = params, opt_state
                proposal = jax.tree.map(lambda new, old: jnp.where(finite, new, old), proposal, before)
            record = StepRecord(nll, finite, jnp.max(stats.residual), jnp.max(stats.norm_drift))
            first = jax.tree.map(lambda new, old: jnp.where(number == start, new, old), edge_weights(grads), first)
            return (Carry(*proposal, answers), first), record

        nothing = jax.tree.map(jnp.zeros_like, edge_weights(carry.params))
        numbers = start + jnp.arange(CHUNK, dtype=jnp.int32)
        (carry, first), records = jax.lax.scan(step, (carry, nothing), (numbers, batches))
        return carry, records, first

    # One seed after the other: a batched program takes twice as long to compile and no less to run.
    return jax.jit(lambda *by_seed, numbers: jax.lax.map(lambda each: run(*each, *numbers), by_seed))


def all_finite(tree: Any) -> Array:
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]).all()


def edge_weights(params: Params) -> Params:
    """Of the three graphs, each [..., L, E_k], before softplus."""
    return params["propagators"]["edge_weights"]


def largest_h_lambda(params: Params, buffers: Params, config: Config) -> np.ndarray:
    """h·λ_max of the worst layer, [seeds]; NaN where a weight is not finite."""
    dim, h = config.model.hidden_dim, config.model.propagator.cayley_dt / 2
    edges = list(buffers["propagators"]["edges"].values())

    def matrix(edges: list[Array], weights: list[Array], logits: Array) -> Array:
        return to_dense(combine_scales(edges, weights, logits), dim).matrix

    arguments = list(edge_weights(params).values()), params["propagators"]["scale_weights"]
    matrices = np.asarray(jax.vmap(jax.vmap(matrix), (None, 0, 0))(edges, *arguments), np.float64)
    finite = np.isfinite(matrices).all(axis=(1, 2, 3))
    largest = np.linalg.eigvalsh(np.where(finite[:, None, None, None], matrices, 0))[..., -1].max(axis=1)
    return np.where(finite, h * largest, math.nan)


def stacked(datasets: list[Dataset], start: int) -> Batch:
    """The batches of steps start..start + CHUNK − 1, [seeds, CHUNK, ...]."""
    batches = [[data.train.batch(start + k) for k in range(CHUNK)] for data in datasets]
    return Batch(*(np.stack([[getattr(b, name) for b in row] for row in batches]) for name in Batch._fields))


def cosine(first: Params, second: Params) -> np.ndarray:
    """Between two trees of real arrays with a leading axis of seeds, [seeds]; NaN where one vanishes."""
    a, b = (
        np.concatenate([np.asarray(x, np.float64).reshape(x.shape[0], -1) for x in tree.values()], axis=1)
        for tree in (first, second)
    )
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        return np.sum(a * b, axis=1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))


def no_answers(config: Config, seeds: int) -> Array:
    """`Carry.answers` before the first batch, with a leading axis of seeds."""
    model, tokens = config.model, (config.training.micro_batch, config.data.seq_length)
    return jnp.zeros((seeds, model.num_layers, *tokens, model.hidden_dim), jnp.complex64)


class Study:
    """The corpus, the initial models and the compiled functions, which all causes share."""

    def __init__(self, steps: int, seeds: int, dim: int, layers: int):
        if steps % CHUNK:
            raise ValueError(f"steps = {steps} must be a multiple of {CHUNK}")
        self.steps, self.seeds, self.sizes = steps, seeds, (dim, layers)
        exact = Program("dense")
        config, self.datasets = open_data(configure(exact, steps, dim, layers), seeds)
        self.vocab_size = config.model.vocab_size
        self.params, self.buffers = initial_models(config, seeds)
        gradient = jax.grad(make_loss(exact, config, self.buffers), has_aux=True)
        self.exact_gradient = jax.jit(jax.vmap(lambda params, batch: edge_weights(gradient(params, (), batch)[0])))

    @functools.cache  # noqa: B019  (a study lives as long as the process)
    def compiled(self, program: Program) -> tuple[Config, Callable]:
        """The configuration and `make_chunk` of a program."""
        config = with_vocabulary(configure(program, self.steps, *self.sizes), self.vocab_size)
        return config, make_chunk(program, config, self.buffers)

    def train(self, cause: Cause) -> list[Run]:
        """One run a seed."""
        config, chunk = self.compiled(cause.program)
        optimizer = make_optimizer(cause.program, config, optax.constant_schedule(0.0), 0, 0.0)  # for its state alone
        moments = jax.jit(jax.vmap(optimizer.init))(self.params)
        carry = Carry(self.params, moments, no_answers(config, self.seeds))
        seeds, runs = jnp.arange(self.seeds), [Run() for _ in range(self.seeds)]
        lr, temperature = jnp.float32([cause.learning_rate, cause.temperature])
        for start in range(0, self.steps, CHUNK):
            batches = stacked(self.datasets, start)
            exact = self.exact_gradient(carry.params, jax.tree.map(lambda x: x[:, 0], batches))
            record_state(runs, largest_h_lambda(carry.params, self.buffers, config), edge_weights(carry.params))
            carry, records, first = chunk(carry, seeds, batches, numbers=(lr, temperature, jnp.int32(start)))
            record_steps(runs, records, cosine(first, exact))
        record_state(runs, largest_h_lambda(carry.params, self.buffers, config), edge_weights(carry.params))
        return runs


def record_state(runs: list[Run], h_lambda: np.ndarray, edges: Params) -> None:
    """Appends what the parameters say, before a chunk or at the end."""
    for seed, run in enumerate(runs):
        raw = np.concatenate([np.asarray(x[seed], np.float64).ravel() for x in edges.values()])
        run.h_lambda.append(float(h_lambda[seed]))
        run.edge_rms.append(float(np.sqrt(np.mean(raw**2))))
        run.edge_max.append(float(np.max(np.abs(raw))))


def record_steps(runs: list[Run], records: StepRecord, cosines: np.ndarray) -> None:
    """Appends the records of a chunk, [seeds, CHUNK]."""
    for seed, run in enumerate(runs):
        for name in ("nll", "residual", "norm_error", "finite"):
            getattr(run, name).extend(np.asarray(getattr(records, name)[seed]).tolist())
        run.edge_cosine.append(float(cosines[seed]))


# --- what became of a run ---


def first_bad_step(run: Run) -> int | None:
    """The first step, counted from 1, whose loss, gradient or new parameters are not finite."""
    return next((step for step, finite in enumerate(run.finite, 1) if not finite), None)


def divergence_step(run: Run, vocab_size: int) -> int | None:
    """The first of DIVERGED_STEPS steps in a row above the uniform distribution by more than DIVERGED_MARGIN."""
    limit, count = math.log(vocab_size) + DIVERGED_MARGIN, 0
    for step, nll in enumerate(run.nll, 1):
        count = 0 if nll <= limit else count + 1  # a NaN counts
        if count == DIVERGED_STEPS:
            return step - DIVERGED_STEPS + 1
    return None


def final_nll(run: Run) -> float:
    """Mean of the last 100 steps, in which every batch is new; infinite after a step that is not finite."""
    last = float(np.mean(run.nll[-100:]))
    return last if math.isfinite(last) and first_bad_step(run) is None else math.inf


def summary(run: Run, vocab_size: int) -> dict[str, Any]:
    """What the table and the figure need, as JSON knows it: null for what is not finite."""

    def points(values: list[float], reduce: Callable) -> list[float | None]:
        return [_or_none(reduce(values[start : start + POINT])) for start in range(0, len(values), POINT)]

    return {
        "first_bad_step": first_bad_step(run),
        "bad_steps": run.finite.count(False),
        "divergence_step": divergence_step(run, vocab_size),
        "final_nll": _or_none(final_nll(run)),
        "worst_residual": _or_none(np.max(run.residual)),
        "worst_norm_error": _or_none(np.max(run.norm_error)),
        "edge_rms": [_or_none(value) for value in run.edge_rms],
        "edge_max": [_or_none(value) for value in run.edge_max],
        "h_lambda": [_or_none(value) for value in run.h_lambda],
        "edge_cosine": [_or_none(value) for value in run.edge_cosine],
        "nll": points(run.nll, np.mean),
        "residual": points(run.residual, np.max),
    }


def _or_none(value: Any) -> float | None:
    return float(value) if math.isfinite(value) else None
