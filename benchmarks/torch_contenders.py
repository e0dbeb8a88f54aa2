"""PyTorch as a contender: the plain reference of `tests/torch_reference`, eager or compiled, and a small GPT.

Each takes the whole training step as a PyTorch user writes it: forward, loss over the whole vocabulary, backward,
clipping, optimizer.
"""

from __future__ import annotations

import dataclasses
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from shapes import random_batch
from small_gpt import SmallGPT, matching_dim

from sem_jax.config import Config
from sem_jax.core.graph import small_world_edges
from sem_jax.modules.model import abstract_model, count_parameters

sys.path.append(str(Path(__file__).parents[1] / "tests"))

from parity.pair import settings_of
from torch_reference import SEM, ComplexAdamW

NUM_SCALES = 3


def reference_model(config: Config) -> SEM:
    """The PyTorch reference at the sizes of a configuration."""
    model, p = config.model, config.model.propagator

    def graph(layer: int, scale: int) -> torch.Tensor:
        neighbours, seed = p.laplacian_sparsity * 2**scale, NUM_SCALES * layer + scale
        return torch.from_numpy(small_world_edges(model.hidden_dim, neighbours, p.rewire_probability, seed)).long()

    edges = [[graph(layer, scale) for scale in range(NUM_SCALES)] for layer in range(model.num_layers)]
    settings = dataclasses.replace(settings_of(model), unitary_lambda=config.optimizer.unitary_lambda)
    torch.manual_seed(0)
    return SEM(settings, edges)


def batch_of(config: Config) -> tuple[torch.Tensor, torch.Tensor]:
    """(inputs, targets) [B, S]."""
    tokens = torch.from_numpy(random_batch(config).tokens).long()
    return tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()


def reference_step(config: Config, compiled: bool = False) -> Callable[[], Any]:
    """One training step of the reference; compiled by `torch.compile` at its first call."""
    model, (inputs, targets) = reference_model(config), batch_of(config)
    settings = config.optimizer
    optimizer = ComplexAdamW(
        dict(model.named_parameters()),
        lambda step: settings.learning_rate,
        weight_decay=settings.weight_decay,
        decay_all=settings.decay_all,
        clip_norm=settings.clip_norm,
    )
    loss_of = torch.compile(model.loss) if compiled else model.loss

    def step() -> float:
        optimizer.zero_grad()
        loss = loss_of(inputs, targets)
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def gpt_of(config: Config) -> SmallGPT:
    """The GPT with as many parameters and layers."""
    model, length = config.model, config.data.seq_length
    count = count_parameters(abstract_model(model).params)
    torch.manual_seed(0)
    dim = matching_dim(count, model.vocab_size, model.num_layers, length)
    return SmallGPT(model.vocab_size, dim, model.num_layers, length)


def gpt_step(config: Config) -> Callable[[], Any]:
    """One training step of a GPT of the same number of parameters."""
    model, (inputs, targets) = gpt_of(config), batch_of(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.99), weight_decay=0.1, fused=True)

    def step() -> float:
        optimizer.zero_grad(set_to_none=True)
        loss = model.loss(inputs, targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return loss.item()

    return step


@contextmanager
def time_limit(seconds: int) -> Iterator[None]:
    """Raises TimeoutError, or what it is turned into on its way, after so many seconds."""

    def stop(*_: Any) -> None:
        raise TimeoutError(f"more than {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
