"""Generation in O(1) a token: readers that carry the state of the model, a compiled loop, and sampling.

Every function below is written for one text; `jax.vmap` makes it one for a batch of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from sem_jax.modules.model import SEM, ModelParts, ModelState
from sem_jax.modules.probe import Observer

# Prompts are read in chunks of this length in parallel, and the rest token by token, so that prompts of every length
# share two compiled programs.
PREFILL_CHUNK = 64
# Tokens that one call of the compiled loop draws at most. The loop ends earlier where fewer are asked for, so that one
# program serves every number of tokens.
DRAW_CHUNK = 64
Prepared: TypeAlias = dict[str, Any]  # from `SEM.prepare`


class SamplingOptions(NamedTuple):
    """How the next token is drawn; scalars, so that a change needs no compilation."""

    temperature: Array | float = 1.0  # 0 takes the most probable token
    top_k: Array | int = 0  # only the k most probable tokens; 0: all
    top_p: Array | float = 1.0  # only the most probable tokens that together reach this probability


class Text(NamedTuple):
    """A text that is being drawn. In a batch of texts every leaf has a further leading axis.

    One reader reads an unbounded context. Two readers read a bounded one of C tokens: what the elder has read decides
    the next token, and the younger, which starts C // 2 tokens before the elder is full, takes its place then. So the
    model never stands at a position beyond C, and a token costs the same wherever it stands.
    """

    states: ModelState  # of the readers, elder first; leading axis of length 1 or 2
    length: Array  # tokens that the elder has read
    token: Array  # the last token, which nobody has read yet
    key: Array  # of all draws of this text
    drawn: Array  # tokens drawn so far
    ended: Array  # whether the eos token has been drawn


class Drawn(NamedTuple):
    """A token, and what it was drawn from."""

    token: Array  # scalar int32
    log_probs: Array  # [V], of the model
    logits: Array  # [V], whose softmax are the chances to be drawn; -inf: none
    seen: dict[str, Any]  # `ForwardStats.seen` of the pass


def sampling_logits(log_probs: Array, options: SamplingOptions) -> Array:
    """The logits [..., V] that tokens are drawn with; -inf: never.

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
    likeliest = jnp.arange(vocab_size) == jnp.argmax(log_probs, axis=-1, keepdims=True)
    return jnp.where(jnp.where(temperature > 0, scaled >= threshold, likeliest), scaled, -jnp.inf)


def reader_starts(length: int, context_length: int | None) -> list[int]:
    """Where in a text of `length` tokens its readers have started, the elder first.

    What stands before the elder's start has no influence on the next token, so a prompt is read from there on.

    >>> reader_starts(1000, None)
    [0]
    >>> reader_starts(8, 8), reader_starts(9, 8)
    ([0, 4], [4, 8])
    """
    if context_length is None:
        return [0]
    stride = context_length - context_length // 2
    restarts = max(-(-(length - context_length) // stride), 0)
    return [restarts * stride, (restarts + 1) * stride]


class Decoder:
    """Continues texts with the model that each call is given; compiled once for each structure and number of texts.

    Args:
      forbidden: [V] bool, tokens that are never drawn (padding and the like); None: all may be.
      eos_id: token that ends a text; None: only the length ends it.
    """

    def __init__(self, forbidden: np.ndarray | None = None, eos_id: int | None = None):
        self._forbidden = False if forbidden is None else jnp.asarray(forbidden)
        self._eos_id = -1 if eos_id is None else eos_id
        self._initial_states = jax.jit(_initial_states, static_argnums=(1, 2))
        self._read_chunk = jax.jit(_read_chunk)
        self._read_rest = jax.jit(_read_rest)
        self._prepare = jax.jit(_prepare)
        self._draw = jax.jit(self._draw_chunk)

    def prefill(
        self, parts: ModelParts, prompts: Sequence[np.ndarray], keys: Array, context_length: int | None
    ) -> Text:
        """Reads prompts up to their last tokens.

        Args:
          parts: the model.
          prompts: B arrays of ids, each of at least one, each the start of a document.
          keys: [B], of the draws of each text.
          context_length: C of `Text`; None is unbounded.

        Returns:
          A batch of B texts.
        """
        starts = [reader_starts(len(prompt) - 1, context_length) for prompt in prompts]
        unread = [[prompt[start:-1] for start in row] for prompt, row in zip(prompts, starts, strict=True)]
        states = self._initial_states(parts, len(prompts), len(starts[0]))
        chunks = np.array([[len(ids) // PREFILL_CHUNK for ids in row] for row in unread])
        for chunk in range(chunks.max()):
            tokens, counts = _padded([[ids[chunk * PREFILL_CHUNK :] for ids in row] for row in unread])
            states = self._read_chunk(parts, states, tokens, counts == PREFILL_CHUNK)
        rests = [[ids[len(ids) // PREFILL_CHUNK * PREFILL_CHUNK :] for ids in row] for row in unread]
        states = self._read_rest(parts, states, *_padded(rests))
        return Text(
            states=states,
            length=jnp.array([len(row[0]) for row in unread], jnp.int32),
            token=jnp.array([prompt[-1] for prompt in prompts], jnp.int32),
            key=keys,
            drawn=jnp.zeros(len(prompts), jnp.int32),
            ended=jnp.zeros(len(prompts), bool),
        )

    def pieces(
        self,
        parts: ModelParts,
        prompts: Sequence[np.ndarray],
        max_tokens: int,
        keys: Array,
        options: SamplingOptions,
        context_length: int | None = None,
    ) -> Iterator[list[np.ndarray]]:
        """Continues prompts, piece by piece.

        Args:
          parts, prompts, keys, context_length: as in `prefill`.
          max_tokens: tokens to draw for each prompt at most.
          options: how to draw.

        Yields:
          For each prompt the next ids, at most DRAW_CHUNK, and none once its eos token is drawn. What follows from a
          prompt does not depend on the others, except for the rounding of sums.
        """
        prepared = self.prepare(parts)  # once for all texts: U costs O(D³), a token O(D²)
        texts = self.prefill(parts, prompts, keys, context_length)
        for start in range(0, max_tokens, DRAW_CHUNK):
            wanted = min(max_tokens - start, DRAW_CHUNK)
            texts, tokens = self.draw(parts, prepared, texts, wanted, options, context_length)
            rows, drawn = np.asarray(tokens), np.asarray(texts.drawn) - start
            yield [row[: max(count, 0)] for row, count in zip(rows, drawn, strict=True)]
            if np.all(texts.ended):
                return

    def prepare(self, parts: ModelParts) -> Prepared:
        """What `draw` needs of the model, computed from its parameters alone."""
        return self._prepare(parts)

    def draw(
        self,
        parts: ModelParts,
        prepared: Prepared,
        texts: Text,
        count: int,
        options: SamplingOptions,
        context_length: int | None,
    ) -> tuple[Text, Array]:
        """The compiled loop: `count` further tokens of each text, at most DRAW_CHUNK, fewer where a text ends.

        Returns:
          The texts after them, and the tokens [B, DRAW_CHUNK], of which the first ones are meant.
        """
        return self._draw(parts, prepared, texts, jnp.int32(count), options, jnp.int32(context_length or 0))

    def _draw_chunk(
        self,
        parts: ModelParts,
        prepared: Prepared,
        texts: Text,
        count: Array,
        options: SamplingOptions,
        context_length: Array,
    ) -> tuple[Text, Array]:
        model = parts.merge()

        def draw(carry: tuple[Array, Text, Array]) -> tuple[Array, Text, Array]:
            i, text, tokens = carry
            text, drawn = self.next_token(model, prepared, text, options, context_length)
            return i + 1, text, tokens.at[i].set(drawn.token)

        def draw_text(text: Text) -> tuple[Text, Array]:
            start = (jnp.int32(0), text, jnp.zeros(DRAW_CHUNK, jnp.int32))
            _, text, tokens = jax.lax.while_loop(lambda carry: (carry[0] < count) & ~carry[1].ended, draw, start)
            return text, tokens

        return jax.vmap(draw_text)(texts)

    def next_token(
        self,
        model: SEM,
        prepared: Prepared,
        text: Text,
        options: SamplingOptions,
        context_length: Array,
        observer: Observer | None = None,
    ) -> tuple[Text, Drawn]:
        """Draws one token of one text that has not ended; to be compiled.

        Args:
          model, prepared: of one structure and its parameters.
          text: without the leading axis of a batch.
          options: how to draw.
          context_length: as in `draw`, 0 for an unbounded one.
          observer: looks at the pass; None: nobody does.

        Returns:
          (the text after it, what was drawn); what was seen is that of all readers, elder first.
        """
        log_probs, text, seen = _read_token(model, prepared, text, context_length, observer)
        logits = sampling_logits(jnp.where(self._forbidden, -jnp.inf, log_probs), options)
        key = jax.random.fold_in(text.key, text.drawn)
        token = jax.random.categorical(key, logits, axis=-1).astype(jnp.int32)
        ended = token == self._eos_id
        text = text._replace(token=token, drawn=text.drawn + jnp.where(ended, 0, 1), ended=ended)
        return text, Drawn(token, log_probs, logits, seen)


def _prepare(parts: ModelParts) -> Prepared:
    return parts.merge().prepare()


def _padded(rows: list[list[np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """The first PREFILL_CHUNK ids of each entry of rows [B][R], padded with 0, and how many there are."""
    counts = np.array([[min(len(ids), PREFILL_CHUNK) for ids in row] for row in rows], np.int32)
    tokens = np.zeros((*counts.shape, PREFILL_CHUNK), np.int32)
    for index, count in np.ndenumerate(counts):
        tokens[index][:count] = rows[index[0]][index[1]][:count]
    return tokens, counts


def _initial_states(parts: ModelParts, num_texts: int, num_readers: int) -> ModelState:
    """States of readers that have read nothing; leading axes [num_texts, num_readers]."""
    fresh = parts.merge().initial_state(1)
    return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (num_texts, num_readers, *leaf.shape)), fresh)


def _read_chunk(parts: ModelParts, states: ModelState, tokens: Array, reading: Array) -> ModelState:
    """Reads whole chunks: tokens [B, R, PREFILL_CHUNK] where `reading` [B, R] is true."""
    model = parts.merge()

    def read(state: ModelState, tokens: Array, reading: Array) -> ModelState:
        return _choose(reading, model(tokens[None], state)[1], state)

    return jax.vmap(jax.vmap(read))(states, tokens, reading)


def _read_rest(parts: ModelParts, states: ModelState, tokens: Array, counts: Array) -> ModelState:
    """Reads the first `counts` [B, R] of tokens [B, R, PREFILL_CHUNK] one by one."""
    model = parts.merge()
    prepared = model.prepare()

    def read(state: ModelState, tokens: Array, count: Array) -> ModelState:
        return jax.lax.fori_loop(0, count, lambda i, state: _step(model, prepared, state, tokens[i])[1], state)

    return jax.vmap(jax.vmap(read))(states, tokens, counts)


def _read_token(
    model: SEM, prepared: Prepared, text: Text, context_length: Array, observer: Observer | None = None
) -> tuple[Array, Text, dict[str, Any]]:
    """(log P of the next token [V], the text, what the observer saw) after its last token has been read."""
    states, length = text.states, text.length
    bounded = jax.tree.leaves(states)[0].shape[0] == 2
    if bounded:
        elder, younger = (jax.tree.map(lambda leaf, i=i: leaf[i], states) for i in (0, 1))
        fresh = model.initial_state(1)
        kept = context_length // 2
        full = length >= context_length
        states = _pair(_choose(full, younger, elder), _choose(full, fresh, younger))
        length = jnp.where(full, kept, length)
    psi, states, seen = jax.vmap(lambda state: _step(model, prepared, state, text.token, observer))(states)
    if bounded:
        elder, younger = (jax.tree.map(lambda leaf, i=i: leaf[i], states) for i in (0, 1))
        states = _pair(elder, _choose(length >= context_length - kept, younger, fresh))
    return model.readout.log_probs(psi[0]), text._replace(states=states, length=length + 1), seen


def _step(
    model: SEM, prepared: Prepared, state: ModelState, token: Array, observer: Observer | None = None
) -> tuple[Array, ModelState, dict[str, Any]]:
    """(ψ [D], state, what the observer saw) of one reader after one token."""
    psi, state, stats = model(token[None, None], state, prepared=prepared, observer=observer)
    return psi[0, 0], state, stats.seen


def _choose(condition: Array, first: ModelState, second: ModelState) -> ModelState:
    return jax.tree.map(lambda x, y: jnp.where(condition, x, y), first, second)


def _pair(elder: ModelState, younger: ModelState) -> ModelState:
    return jax.tree.map(lambda x, y: jnp.stack([x, y]), elder, younger)
