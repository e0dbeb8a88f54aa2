"""One small model with random parameters, on both sides."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import torch
from torch_reference import SEM as TorchSEM
from torch_reference import Settings

from sem_jax.config import EncoderConfig, MixerConfig, ModelConfig, PropagatorConfig
from sem_jax.interop import import_state_dict
from sem_jax.modules.model import ModelParts, abstract_model, split_model

Arrays = dict[str, np.ndarray]

BATCH, LENGTH = 3, 11
NUM_EDGES = (12, 24, 40)  # of the 66 that 12 channels can have
UNITARY_LAMBDA = 0.3

REFERENCE: dict[str, Any] = {
    "likelihood": "reference",
    "encoder.transport": "sequence_sinkhorn",
    "encoder.embedding_skip": False,
    "encoder.sinkhorn_max_iter": 50,
    "propagator.kerr_saturation": 0.0,
    "mixer.clamp_interval": 4,  # due within these few positions
}


def model_config(changes: dict[str, Any] | None = None) -> ModelConfig:
    """The default semantics at small, unequal sizes, with fields such as "mixer.clamp_interval" replaced."""
    config = ModelConfig(
        vocab_size=23,
        hidden_dim=12,
        num_layers=1,
        max_seq_length=16,
        encoder=EncoderConfig(
            transport="row_softmax",
            position_phase=True,
            sdr_candidates=7,
            sdr_sparsity=4,
            cost_dim=5,
            sinkhorn_epsilon=2.0,  # plans far from one-hot: every column takes part
            sinkhorn_max_iter=3,
            sinkhorn_prior=2.0,
        ),
        likelihood="born",
        mixer=MixerConfig(kind="fixed", block_size=4, conv_width=3, num_groups=2, state_dim=5),
        propagator=PropagatorConfig(cayley_dt=0.7),
        born_floor=1e-3,
    )
    for path, value in (changes or {}).items():
        group, _, name = path.rpartition(".")
        if group:
            name, value = group, dataclasses.replace(getattr(config, group), **{name: value})
        config = dataclasses.replace(config, **{name: value})
    return config


def settings_of(config: ModelConfig) -> Settings:
    """The same model for the PyTorch reference."""
    encoder, mixer = config.encoder, config.mixer
    return Settings(
        vocab_size=config.vocab_size,
        hidden_dim=config.hidden_dim,
        num_layers=config.num_layers,
        max_seq_length=config.max_seq_length,
        transport=encoder.transport,
        embedding_skip=encoder.embedding_skip,
        sdr_candidates=encoder.sdr_candidates,
        sdr_sparsity=encoder.sdr_sparsity,
        cost_dim=encoder.cost_dim,
        sinkhorn_epsilon=encoder.sinkhorn_epsilon,
        sinkhorn_max_iter=encoder.sinkhorn_max_iter,
        sinkhorn_tol=encoder.sinkhorn_tol,
        sinkhorn_prior=encoder.sinkhorn_prior,
        block_size=mixer.block_size,
        conv_width=mixer.conv_width,
        num_groups=mixer.num_groups,
        state_dim=mixer.state_dim,
        input_scale=mixer.input_scale,
        clamp_interval=mixer.clamp_interval,
        cayley_dt=config.propagator.cayley_dt,
        kerr_saturation=config.propagator.kerr_saturation,
        likelihood=config.likelihood,
        born_floor=config.born_floor,
        unitary_lambda=UNITARY_LAMBDA,
    )


class Inputs(NamedTuple):
    """What both sides are given, as arrays of numpy, jax or torch."""

    tokens: Any  # [B, S]
    targets: Any  # [B, S]
    resets: Any  # [B, S] bool
    position: Any  # [B, S], in the documents that the resets begin
    weights: Any  # [B, S]
    token_freqs: Any  # [V]
    wave: Any  # [B, S, D] complex


@functools.cache
def random_inputs(config: ModelConfig, seed: int) -> Inputs:
    """Documents of many lengths, targets of every weight; float64 values that float32 can hold."""
    rng = np.random.default_rng(seed)
    shape = (BATCH, LENGTH)
    tokens, targets = rng.integers(0, config.vocab_size, (2, *shape))
    resets = rng.random(shape) < 0.25
    index = np.arange(LENGTH)
    position = index - np.maximum.accumulate(np.where(resets, index, 0), axis=1)
    wave = rng.normal(size=(*shape, config.hidden_dim)) + 1j * rng.normal(size=(*shape, config.hidden_dim))
    weights, freqs = rng.random(shape), 5 * rng.random(config.vocab_size)
    return Inputs(tokens, targets, resets, position, *map(held_by_float32, (weights, freqs, wave)))


def held_by_float32(x: np.ndarray) -> np.ndarray:
    """The nearest float32 value in double precision, so that both precisions start from the same numbers."""
    narrow, wide = (np.complex64, np.complex128) if np.iscomplexobj(x) else (np.float32, np.float64)
    return np.asarray(np.asarray(x, narrow), wide)


@functools.cache
def random_state(num_layers: int, seed: int) -> Arrays:
    """A state dict with random graphs and with no parameter at a special value."""
    rng = np.random.default_rng(seed)
    config = model_config({"num_layers": num_layers})
    nodes = np.stack(np.triu_indices(config.hidden_dim, 1))
    edges = [
        [torch.from_numpy(nodes[:, np.sort(rng.permutation(nodes.shape[1])[:count])]) for count in NUM_EDGES]
        for _ in range(num_layers)
    ]
    state = {name: x.numpy() for name, x in TorchSEM(settings_of(config), edges).state_dict().items()}
    del state["encoder.positional_phase"]  # of one precision; both sides compute it in theirs
    is_drawn = {name: x.dtype.kind == "f" for name, x in state.items()}
    return {n: held_by_float32(0.5 * rng.normal(size=x.shape)) if is_drawn[n] else x for n, x in state.items()}


def has(config: ModelConfig, name: str) -> bool:
    """Whether a model of this configuration has this entry of the state dict."""
    return config.encoder.transport != "none" or not name.startswith(("encoder.cost.", "encoder.sdr_to_hidden."))


@contextlib.contextmanager
def torch_precision(dtype: np.dtype) -> Iterator[None]:
    """The default precision of new tensors."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64 if dtype == np.float64 else torch.float32)
    yield
    torch.set_default_dtype(before)


def torch_model(config: ModelConfig, state: Arrays, dtype: np.dtype) -> TorchSEM:
    """The PyTorch reference with these parameters."""
    with torch_precision(dtype):
        present = {name: torch.as_tensor(x) for name, x in state.items() if has(config, name)}
        return TorchSEM.from_state_dict(settings_of(config), present)


def cast(tree: Any, dtype: np.dtype) -> Any:
    """Floating point leaves in this precision, complex ones in its complex form."""
    kinds = {"f": dtype, "c": np.result_type(dtype, np.complex64)}
    return jax.tree.map(lambda x: np.asarray(x, kinds.get(x.dtype.kind, x.dtype)), tree)


@functools.cache
def structure(config: ModelConfig) -> Any:
    """The graph definition of a model."""
    return abstract_model(config).graphdef


@functools.cache
def imported_trees(num_layers: int, seed: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """`random_state` as trees of parameters and buffers, by the import that users have."""
    state = dict(random_state(num_layers, seed))
    config = model_config()
    frequency = 10000.0 ** (-np.arange(config.hidden_dim) / config.hidden_dim)
    phase = np.arange(config.max_seq_length, dtype=np.float32)[:, None] * frequency.astype(np.float32)
    state["encoder.positional_phase"] = phase
    _, model = import_state_dict(state, sdr_sparsity=config.encoder.sdr_sparsity)
    parts = jax.tree.map(np.asarray, split_model(model))
    return parts.params, parts.buffers | {"encoder": {"frequency": frequency}}


def jax_parts(config: ModelConfig, seed: int, dtype: np.dtype) -> ModelParts:
    """The sem_jax model with the parameters of `random_state`."""
    params, buffers = cast(imported_trees(config.num_layers, seed), dtype)
    if config.encoder.transport == "none":
        params["encoder"] = {"embedding": params["encoder"]["embedding"]}
    return ModelParts(structure(config), *jax.tree.map(jnp.asarray, (params, buffers)))
