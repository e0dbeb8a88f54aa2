"""The same 50 optimizer steps on both sides: sem_jax's whole train step, and the reference's loss and optimizer."""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import torch
from torch_reference import ComplexAdamW

from sem_jax.config import Config, OptimizerConfig, TrainingConfig
from sem_jax.data import Batch
from sem_jax.interop import export_state_dict
from sem_jax.modules.model import ModelParts
from sem_jax.optim import langevin
from sem_jax.training.state import start_state
from sem_jax.training.step import make_train_step

from .comparison import FLOAT64
from .pair import (
    REFERENCE,
    UNITARY_LAMBDA,
    Arrays,
    cast,
    held_by_float32,
    jax_parts,
    model_config,
    random_state,
    torch_model,
)

STEPS, BATCH, LENGTH, DISTINCT_BATCHES = 50, 4, 8, 5
SEED = 0
LOSSES = "losses"


@dataclass(frozen=True, eq=False)
class Run:
    """One training run; documents says whether batches hold several in a row."""

    model: dict[str, Any]
    documents: bool
    optimizer: dict[str, Any] = field(default_factory=dict)
    micro_batch: int = BATCH

    @property
    def config(self) -> Config:
        """The configuration of sem_jax."""
        optimizer = OptimizerConfig(
            learning_rate=3e-3, warmup_steps=5, decay_steps=15, clip_norm=0.5, unitary_lambda=UNITARY_LAMBDA
        )
        return Config(
            model=model_config(self.model),
            optimizer=dataclasses.replace(optimizer, **self.optimizer),
            training=TrainingConfig(seed=7, max_steps=STEPS, global_batch=BATCH, micro_batch=self.micro_batch),
        )


RUNS = {
    # An unused bias is left alone by PyTorch, which has no gradient for it, and decays here; from 0 it stays there.
    "reference": Run(REFERENCE, documents=False, optimizer={"decay_all": True}),
    "default": Run({}, documents=True, micro_batch=2),
    # The noise of the warm-up is capped; on the plateau, where 2T/η = .005, small second moments are at the floor. T is
    # a power of two, so that its product with a float32 learning rate is exact in both precisions.
    "causal Sinkhorn, T > 0": Run(
        {"encoder.transport": "causal_sinkhorn"},
        documents=True,
        optimizer={"temperature": 2.0**-17, "noise_floor": 0.01},
    ),
}


def initial_parts(run: Run, dtype: np.dtype) -> ModelParts:
    parts = jax_parts(run.config.model, SEED, dtype)
    if run.config.model.likelihood == "reference":
        parts.params["readout"]["bias"] = jnp.zeros_like(parts.params["readout"]["bias"])
    return parts


def initial_state(run: Run) -> Arrays:
    state = dict(random_state(run.config.model.num_layers, SEED))
    if run.config.model.likelihood == "reference":
        state["sampler.output_bias"] = np.zeros_like(state["sampler.output_bias"])
    return state


@functools.cache
def batches(run: Run) -> list[Batch]:
    """The batch of each step; a few that come again and again."""
    rng = np.random.default_rng(1)
    shape, vocab = (BATCH, LENGTH + 1), run.config.model.vocab_size

    def draw() -> Batch:
        resets = rng.random(shape) < (0.25 if run.documents else 0.0)
        weights = held_by_float32(rng.random((BATCH, LENGTH)) * (rng.random((BATCH, LENGTH)) < 0.8))
        return Batch(rng.integers(0, vocab, shape).astype(np.int32), resets, weights)

    distinct = [draw() for _ in range(DISTINCT_BATCHES)]
    return [distinct[step % DISTINCT_BATCHES] for step in range(STEPS)]


def train_ours(run: Run, dtype: np.dtype) -> tuple[Arrays, list[float]]:
    """Parameters after the last step with the losses on the way, and the learning rates."""
    config, parts = run.config, initial_parts(run, dtype)
    state, step = start_state(config, parts), make_train_step(config)
    losses, rates = [], []
    for batch in batches(run):
        state, metrics = step(state, cast(batch, dtype))
        losses.append(float(metrics.loss))
        rates.append(float(metrics.lr))
    return {LOSSES: np.array(losses)} | export_state_dict(state.params), rates


class Precision(NamedTuple):
    """Of a run of the reference."""

    computed_in: np.dtype
    noise_drawn_in: np.dtype  # other numbers in another precision


@functools.cache
def injected_noise(run: Run, drawn_in: np.dtype) -> list[Arrays]:
    """ξ of every step as sem_jax draws it in this precision, by parameter name."""

    with jax.enable_x64(drawn_in == FLOAT64):
        params = initial_parts(run, drawn_in).params
        draw = jax.jit(functools.partial(langevin._unit_normals, run.config.training.seed))
        return [export_state_dict(draw(params, step)) for step in range(STEPS)]


def train_theirs(run: Run, rates: list[float], precision: Precision, unit: float = 0.0) -> Arrays:
    """The same by the reference; before every step each parameter is moved by up to `unit` of itself."""
    config, rng = run.config, np.random.default_rng(2)
    optimizer_config = config.optimizer
    model = torch_model(config.model, initial_state(run), precision.computed_in)
    parameters = dict(model.named_parameters())
    optimizer = ComplexAdamW(
        parameters,
        rates.__getitem__,
        weight_decay=optimizer_config.weight_decay,
        decay_all=optimizer_config.decay_all,
        clip_norm=optimizer_config.clip_norm,
        temperature=optimizer_config.temperature,
        noise_floor=optimizer_config.noise_floor,
        noise_cap=optimizer_config.noise_cap,
    )
    noise = injected_noise(run, precision.noise_drawn_in) if optimizer_config.temperature else [{}] * STEPS
    losses = []
    for batch, xi in zip(batches(run), noise, strict=True):
        for p in parameters.values():
            p.data.copy_(p.double() * (1 + torch.from_numpy(rng.uniform(-unit, unit, tuple(p.shape)))))
        tokens, resets, weights = map(torch.from_numpy, cast(batch, precision.computed_in))
        inputs, targets, resets = tokens[:, :-1].long(), tokens[:, 1:].long(), resets[:, :-1]
        optimizer.zero_grad()
        loss = model.loss(inputs, targets, resets if run.documents else None, weights)
        loss.backward()
        optimizer.step({name: torch.from_numpy(x) for name, x in cast(xi, precision.computed_in).items()})
        losses.append(loss.item())
    return {LOSSES: np.array(losses)} | {name: p.detach().numpy() for name, p in parameters.items()}
