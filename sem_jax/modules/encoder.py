"""Token ids to the wave function: an embedding, and as the reference has it, a transport plan and a position phase."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from sem_jax.config import ModelConfig
from sem_jax.core import sinkhorn
from sem_jax.core.complex_ops import expi
from sem_jax.core.statistics import mean_entropy
from sem_jax.modules.block import Context
from sem_jax.modules.cost import COMPLEX, FLOAT, MULTIPLY_ADD, Cost, product
from sem_jax.modules.linear import Linear
from sem_jax.modules.probe import Probe, unobserved


def rotation_frequency(dim: int) -> np.ndarray:
    """10000^(−j/D), [D] in double precision: radians that each channel turns from one position to the next."""
    return 10000.0 ** (-np.arange(dim) / dim)


class TransportStats(NamedTuple):
    """How the plan is used."""

    row_entropy: Array  # bits, of one token over the columns
    column_entropy: Array  # bits, of the mean row; log₂M where all columns are used alike
    kept: Array  # columns that stay non-zero in a token's row, the mean over tokens


class Encoder(nnx.Module):
    """z[s, j] = sdr[s, j]·exp(i·s·10000^(−j/D)) (docs/mathematics.md, section 2, Encoder).

    Without the position phase the wave starts real: what turns it is the mixers' and propagators'.

    The transport plan is causal in every form but "sequence_sinkhorn"; its state is the column sums of the prefix
    ("causal_sinkhorn") or nothing.
    """

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        self.config = config.encoder
        dim, encoder = config.hidden_dim, config.encoder
        self.embedding = nnx.Param(jax.random.normal(rngs.params(), (config.vocab_size, dim)))
        if encoder.position_phase:
            # A buffer, so that an imported model turns by its own frequencies to the bit.
            self.frequency = nnx.Variable(jnp.asarray(rotation_frequency(dim), self.embedding.dtype))
        if encoder.transport == "none":
            return
        self.input_proj = Linear(dim, encoder.cost_dim, rngs=rngs)
        codebook = jax.random.normal(rngs.params(), (encoder.sdr_candidates, encoder.cost_dim))
        self.codebook = nnx.Param(0.02 * codebook)
        self.sdr_to_hidden = Linear(encoder.sdr_candidates, dim, rngs=rngs)

    @property
    def PARTS(self) -> Mapping[str, tuple[str, ...]]:
        """As in `Block`."""
        plan = {"plan": ("input_proj", "codebook"), "sdr": ()} if self.config.transport != "none" else {}
        return {"embedding": ("embedding",), **plan, "wave": ("sdr_to_hidden",)}

    def initial_state(self, batch_size: int) -> Array:
        """Column sums of the causal Sinkhorn sweeps before the first token; without entries in the other forms."""
        config = self.config
        sweeps = config.sinkhorn_max_iter if config.transport == "causal_sinkhorn" else 0
        mass = sinkhorn.initial_log_mass(sweeps, config.sdr_candidates, config.sinkhorn_prior, self.embedding.dtype)
        return jnp.broadcast_to(mass, (sweeps, batch_size, config.sdr_candidates))

    def __call__(
        self,
        tokens: Array,
        state: Array,
        context: Context,
        token_freqs: Array | None = None,
        probe: Probe = unobserved,
    ) -> tuple[Array, Array]:
        """Encodes tokens.

        Args:
          tokens: [B, S] int.
          state: as from `initial_state`.
          context: of the pass.
          token_freqs: [V], optional frequencies f; the cost is divided by log(f + e).
          probe: sees the parts.

        Returns:
          (psi [B, S, D] complex, state).
        """
        x = probe("embedding", self.embedding[...][tokens])
        hidden = x if self.config.embedding_skip else jnp.zeros_like(x)
        if self.config.transport != "none":
            plan, state = self.plan(x, tokens, context.position, state, token_freqs)
            plan = probe("plan", plan)
            sdr = probe("sdr", sinkhorn.sparsify(plan, self.config.sdr_sparsity))
            hidden = hidden + self.sdr_to_hidden(sdr)
        return probe("wave", self.turned(hidden, context.position)), state

    def turned(self, hidden: Array, position: Array) -> Array:
        """The wave [B, S, D] of amplitudes [B, S, D] at positions [B, S]."""
        if not self.config.position_phase:
            return hidden.astype(jnp.result_type(hidden, jnp.complex64))
        return hidden * expi(position[..., None] * self.frequency[...])

    def plan(
        self, x: Array, tokens: Array, position: Array, state: Array, token_freqs: Array | None
    ) -> tuple[Array, Array]:
        """The transport plan [B, S, M] of embedded tokens x [B, S, D], and the state after it."""
        config = self.config
        cost = sinkhorn.transport_cost(self.input_proj(x), self.codebook[...])
        if token_freqs is not None:
            cost = cost / jnp.log(token_freqs[tokens] + jnp.e)[..., None]
        log_kernel = -cost / config.sinkhorn_epsilon
        if config.transport == "sequence_sinkhorn":
            return sinkhorn.sequence_sinkhorn(log_kernel, config.sinkhorn_max_iter, config.sinkhorn_tol), state
        if config.transport == "causal_sinkhorn":
            return sinkhorn.causal_sinkhorn(log_kernel, state, position, config.sinkhorn_prior)
        return sinkhorn.row_softmax(log_kernel), state

    def inspect(self, values: Mapping[str, Array], state: Array, context: Context) -> TransportStats | tuple[()]:
        """How the plan is used; () without one."""
        del state, context
        if "plan" not in values:
            return ()
        plan = values["plan"]
        rows = plan / jnp.sum(plan, axis=-1, keepdims=True)  # rows of the reference's plan sum to 1/S
        columns = jnp.mean(plan, axis=(0, 1))
        return TransportStats(
            row_entropy=mean_entropy(rows),
            column_entropy=mean_entropy(columns / jnp.sum(columns)),
            kept=jnp.mean(jnp.sum(values["sdr"] != 0, axis=-1)),
        )

    def costs(self, tokens: int) -> dict[str, Cost]:
        """Arithmetic and traffic over so many tokens: cost, plan and its way to D channels; the plan is elementwise."""
        config, dim = self.config, self.embedding.shape[1]
        candidates = config.sdr_candidates if config.transport != "none" else 0
        multiply_adds = candidates and dim * config.cost_dim + config.cost_dim * candidates + candidates * dim
        return {"encoder": product(MULTIPLY_ADD * tokens * multiply_adds, FLOAT * tokens * dim, COMPLEX * tokens * dim)}
