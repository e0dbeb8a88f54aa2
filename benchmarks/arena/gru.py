"""A gated recurrent unit (Cho et al., 2014, arXiv:1406.1078) behind a norm and beside a residual."""

from __future__ import annotations

from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from arena.real import depth_scale
from sem_jax.config import ModelConfig
from sem_jax.core.complex_ops import rms_norm
from sem_jax.modules.block import Block, Context
from sem_jax.modules.linear import Linear
from sem_jax.modules.probe import Probe, unobserved


class GRU(Block):
    """x + s·W_o h, with h the unit's state after each token of norm(x), in the form of torch.nn.GRU."""

    GATES: ClassVar = ("reset", "update", "new")
    PARTS: ClassVar = {"gru": ("gamma", *(f"{gate}_{of}" for gate in GATES for of in ("input", "state")), "out")}
    RESIDUAL: ClassVar = frozenset({"gru"})

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs, layer: int):
        del layer
        dim, self.scale = config.hidden_dim, depth_scale(config)
        self.gamma = nnx.Param(jnp.ones(dim), decay=False)
        for gate in self.GATES:
            setattr(self, f"{gate}_input", Linear(dim, dim, rngs=rngs))
            setattr(self, f"{gate}_state", Linear(dim, dim, rngs=rngs))
        self.out = Linear(dim, dim, rngs=rngs)

    def initial_state(self, batch_size: int) -> Array:
        """[B, D], zero."""
        return jnp.zeros((batch_size, self.gamma.shape[-1]))

    def __call__(
        self, x: Array, state: Array, context: Context, probe: Probe = unobserved, prepared: None = None
    ) -> tuple[Array, Array, tuple[()]]:
        """See `Block`."""
        del prepared
        h, after = self.unit(rms_norm(x, self.gamma[...]), state, context.position)
        return probe("gru", x + self.scale * self.out(h)), after, ()

    def unit(self, x: Array, h: Array, position: Array) -> tuple[Array, Array]:
        """(states [B, S, D], the last one) of inputs [B, S, D] after the state h; it starts afresh at position 0."""

        def step(h: Array, inputs: tuple[Array, ...]) -> tuple[Array, Array]:
            starts, *read = inputs
            h = jnp.where(starts[:, None], 0, h)
            reset = jax.nn.sigmoid(read[0] + self.reset_state(h))
            update = jax.nn.sigmoid(read[1] + self.update_state(h))
            new = jnp.tanh(read[2] + reset * self.new_state(h))
            h = (1 - update) * new + update * h
            return h, h

        read = [getattr(self, f"{gate}_input")(x) for gate in self.GATES]
        after, states = jax.lax.scan(step, h, [jnp.swapaxes(a, 0, 1) for a in (position == 0, *read)])
        return jnp.swapaxes(states, 0, 1), after
