"""The training step lowers for accelerators that this machine does not have."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import pytest
from small import config

from sem_jax.data import Batch
from sem_jax.training.state import abstract_state
from sem_jax.training.step import make_train_step

PRESENT = {
    "model__vocab_size": 11,
    "model__layout": "interleaved",
    "model__likelihood": "coherent",
    "model__mixer__kind": "selective",
    "model__mixer__num_heads": 2,
}
FORMS = {"selective, dense": PRESENT, "fixed, CG": {"model__vocab_size": 11, "model__propagator__solver": "cg"}}


@functools.cache
def config_and_step(form):
    """One trace for all platforms."""
    cfg = config(**FORMS[form])
    cfg = dataclasses.replace(cfg, data=dataclasses.replace(cfg.data, seq_length=128))  # two chunks
    return cfg, make_train_step(cfg)


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
@pytest.mark.parametrize("form", FORMS)
def test_the_step_lowers(form, platform):
    cfg, train_step = config_and_step(form)
    batch, length = cfg.training.global_batch, cfg.data.seq_length
    shapes = Batch(
        jax.ShapeDtypeStruct((batch, length + 1), jnp.int32),
        jax.ShapeDtypeStruct((batch, length + 1), jnp.bool_),
        jax.ShapeDtypeStruct((batch, length), jnp.float32),
    )
    exported = jax.export.export(train_step, platforms=[platform])(abstract_state(cfg), shapes)
    assert exported.platforms == (platform,)
    # A step gives back the state that it took, so that it can be called again.
    assert [x.shape for x in exported.out_avals[: len(jax.tree.leaves(abstract_state(cfg)))]] == [
        x.shape for x in jax.tree.leaves(abstract_state(cfg))
    ]
