"""Small models with random parameters: no parameter at the special value it starts from, every feature active."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from sem_jax.config import EncoderConfig, MixerConfig, ModelConfig, PropagatorConfig
from sem_jax.modules.encoder import rotation_frequency
from sem_jax.modules.model import ModelParts, ModelState, abstract_model, stack_layers
from sem_jax.modules.propagator import Propagator

CAUSAL_TRANSPORTS = ("none", "row_softmax", "causal_sinkhorn")


def small_config(transport: str, solver: str = "dense", **changes) -> ModelConfig:
    """A model small enough to compile in seconds; the token gets in through the plan alone, where there is one."""
    config = ModelConfig(
        vocab_size=12,
        hidden_dim=8,
        num_layers=2,
        encoder=EncoderConfig(
            transport=transport,
            position_phase=True,
            embedding_skip=transport == "none",
            sdr_candidates=6,
            sdr_sparsity=4,
            cost_dim=4,
            sinkhorn_epsilon=4.0,  # plans far from one-hot: every column takes part
            sinkhorn_max_iter=3,
            sinkhorn_prior=2.0,
        ),
        likelihood="born",
        mixer=MixerConfig(kind="fixed", block_size=4, conv_width=3, num_groups=2, state_dim=3),
        propagator=PropagatorConfig(
            solver=solver, laplacian_sparsity=2, cayley_dt=0.5, cg_max_iter=20, solver_tol=1e-3
        ),
    )
    return dataclasses.replace(config, **changes)


def random_parts(config: ModelConfig, seed: int = 0) -> ModelParts:
    """A model with normally distributed parameters, and the graphs of a fresh one."""
    rng = np.random.default_rng(seed)

    def draw(leaf) -> np.ndarray:
        x = rng.normal(size=leaf.shape)
        return ((x + 1j * rng.normal(size=leaf.shape)) / 2 if np.iscomplexobj(leaf) else 0.7 * x).astype(leaf.dtype)

    abstract = abstract_model(config)
    params = jax.tree.map(lambda leaf: jnp.asarray(draw(leaf)), abstract.params)
    frequency = jnp.asarray(rotation_frequency(config.hidden_dim), params["final_gamma"].dtype)
    buffers = {"encoder": {"frequency": frequency}} if "encoder" in abstract.buffers else {}
    if "propagators" in abstract.buffers:
        fresh = stack_layers([Propagator(config, nnx.Rngs(0), layer) for layer in range(config.num_layers)])
        buffers["propagators"] = nnx.to_pure_dict(nnx.split(fresh, nnx.Param, ...)[2])
    return abstract.replace(params=params, buffers=buffers)


def start_of(parts: ModelParts, batch_size: int) -> ModelState:
    """The state at the start of a document, in the precision of the parameters."""
    state = parts.merge().initial_state(batch_size)
    return state._replace(encoder=state.encoder.astype(parts.params["final_gamma"].dtype))
