"""Generation in O(1) a token: the carried state of the model, a compiled loop, and sampling."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from sem_jax.modules.model import SEM, ModelParts, ModelState

# Prompts are read in chunks of this length in parallel, and the rest token by token, so that prompts of every length
# share two compiled programs.
PREFILL_CHUNK = 64


class SamplingOptions(NamedTuple):
    """How the next token is drawn; scalars, so that a change needs no compilation."""

    temperature: Array | float = 1.0  # 0 takes the most probable token
    top_k: Array | int = 0  # only the k most probable tokens; 0: all
    top_p: Array | float = 1.0  # only the most probable tokens that together reach this probability


def sample(key: Array, log_probs: Array, options: SamplingOptions) -> Array:
    """Draws tokens: [..., V] to [...].

    Temperature first, then top-k, then nucleus sampling (Holtzman et al., 2020), as is usual. The most probable token
    always remains.
    """
    temperature = jnp.asarray(options.temperature, log_probs.dtype)
    scaled = log_probs / jnp.where(temperature > 0, temperature, 1)
    vocab_size = log_probs.shape[-1]
    ordered = jnp.sort(scaled, axis=-1, descending=True)
    top_k = jnp.where(options.top_k > 0, jnp.minimum(options.top_k, vocab_size), vocab_size)
    kept = jnp.where(jnp.arange(vocab_size) < top_k, ordered, -jnp.inf)
    before = jnp.cumsum(jax.nn.softmax(kept, axis=-1), axis=-1) - jax.nn.softmax(kept, axis=-1)
    inside = (before < options.top_p) & jnp.isfinite(kept)
    inside = inside.at[..., 0].set(True)
    threshold = jnp.min(jnp.where(inside, ordered, jnp.inf), axis=-1, keepdims=True)
    drawn = jax.random.categorical(key, jnp.where(scaled >= threshold, scaled, -jnp.inf), axis=-1)
    return jnp.where(temperature > 0, drawn, jnp.argmax(log_probs, axis=-1))


class Decoder:
    """The compiled functions of one model structure: `step`, `prefill`, `draw` and `generate`.

    Args:
      graphdef: of `ModelParts`.
      forbidden: [V] bool, tokens that are never drawn (padding and the like); None: all may be.
      eos_id: token that ends a text; None: only the length ends it.
    """

    def __init__(self, graphdef: Any, forbidden: np.ndarray | None = None, eos_id: int | None = None):
        self._graphdef = graphdef
        self._forbidden = forbidden
        self._eos_id = -1 if eos_id is None else eos_id
        self.step: Callable = jax.jit(self._step)
        self._read_chunk: Callable = jax.jit(self._forward_state)
        self._read_rest: Callable = jax.jit(self._read_tokens)
        self.draw: Callable = jax.jit(self._loop, static_argnames="max_tokens")

    def initial_state(self, params: Any, buffers: Any, batch_size: int) -> ModelState:
        """The state at the start of a document."""
        return ModelParts(self._graphdef, params, buffers).merge().initial_state(batch_size)

    def _forward_state(self, params: Any, buffers: Any, state: ModelState, tokens: Array) -> ModelState:
        return ModelParts(self._graphdef, params, buffers).merge()(tokens, state)[1]

    def _step(self, params: Any, buffers: Any, state: ModelState, token: Array) -> tuple[Array, ModelState]:
        """(log P of the next token [B, V], state) after one token [B]."""
        return _next(ModelParts(self._graphdef, params, buffers).merge(), state, token, None)

    def _read_tokens(self, params: Any, buffers: Any, state: ModelState, tokens: Array, count: Array) -> ModelState:
        """Reads the first `count` of tokens [B, PREFILL_CHUNK] one by one."""

        model = ModelParts(self._graphdef, params, buffers).merge()
        prepared = model.prepare()

        def read(i, state):
            return model(jax.lax.dynamic_index_in_dim(tokens, i, axis=1), state, prepared=prepared)[1]

        return jax.lax.fori_loop(0, count, read, state)

    def prefill(self, params: Any, buffers: Any, tokens: np.ndarray) -> ModelState:
        """The state after tokens [B, S] from the start of a document."""
        state = self.initial_state(params, buffers, tokens.shape[0])
        whole = tokens.shape[1] // PREFILL_CHUNK * PREFILL_CHUNK
        for start in range(0, whole, PREFILL_CHUNK):
            state = self._read_chunk(params, buffers, state, jnp.asarray(tokens[:, start : start + PREFILL_CHUNK]))
        rest = tokens[:, whole:]
        padded = np.pad(rest, ((0, 0), (0, PREFILL_CHUNK - rest.shape[1])))
        return self._read_rest(params, buffers, state, jnp.asarray(padded), rest.shape[1])

    def generate(
        self, params: Any, buffers: Any, prompt: np.ndarray, max_tokens: int, key: Array, options: SamplingOptions
    ) -> list[np.ndarray]:
        """Continues prompts.

        Args:
          params, buffers: of the model.
          prompt: [B, S] int, S >= 1.
          max_tokens: tokens to draw at most.
          key: of the draws.
          options: how to draw.

        Returns:
          B arrays of at most max_tokens ids; each ends before its eos token.
        """
        state = self.prefill(params, buffers, prompt[:, :-1])
        last = jnp.asarray(prompt[:, -1])
        tokens = np.asarray(self.draw(params, buffers, state, last, key, options, max_tokens=max_tokens))
        ends = [np.flatnonzero(row == self._eos_id) for row in tokens]
        return [row[: end[0]] if end.size else row for row, end in zip(tokens, ends, strict=True)]

    def _loop(
        self,
        params: Any,
        buffers: Any,
        state: ModelState,
        token: Array,
        key: Array,
        options: SamplingOptions,
        *,
        max_tokens: int,
    ) -> Array:
        """Draws until every text has ended or max_tokens are drawn: [B, max_tokens], filled up with eos."""
        forbidden = False if self._forbidden is None else jnp.asarray(self._forbidden)
        model = ModelParts(self._graphdef, params, buffers).merge()
        prepared = model.prepare()  # once a text: U costs O(D³), a token O(D²)

        def unfinished(carry):
            i, _, _, done, _ = carry
            return (i < max_tokens) & ~jnp.all(done)

        def draw(carry):
            i, token, state, done, drawn = carry
            log_probs, state = _next(model, state, token, prepared)
            allowed = jnp.where(forbidden, -jnp.inf, log_probs)
            token = sample(jax.random.fold_in(key, i), allowed, options).astype(token.dtype)
            token = jnp.where(done, self._eos_id, token)
            return i + 1, token, state, done | (token == self._eos_id), drawn.at[:, i].set(token)

        drawn = jnp.full((token.shape[0], max_tokens), self._eos_id, token.dtype)
        start = (jnp.int32(0), token, state, jnp.zeros(token.shape, bool), drawn)
        return jax.lax.while_loop(unfinished, draw, start)[-1]


def _next(model: SEM, state: ModelState, token: Array, prepared: dict[str, Any] | None) -> tuple[Array, ModelState]:
    """(log P of the next token [B, V], state) after one token [B]."""
    psi, state, _ = model(token[:, None], state, prepared=prepared)
    return model.readout.log_probs(psi[:, 0]), state
