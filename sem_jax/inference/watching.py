"""Generation under observation: each token with the distribution that it was drawn from and the wave behind it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from sem_jax.inference.decoding import Decoder, Prepared, SamplingOptions, Text
from sem_jax.modules.model import SEM, ModelParts
from sem_jax.modules.probe import OutputObserver

LIKELIEST = 20  # tokens of a distribution that are told


class Moment(NamedTuple):
    """A drawn token, and what the model computed when it had read the token before."""

    token: int  # its id
    ended: bool  # whether it is the eos token, which ends the text and does not belong to it
    probability: float  # of the token, as the model gives it
    chance: float  # of the token to be drawn, after temperature, top-k and top-p
    likeliest: np.ndarray  # [at most LIKELIEST] ids, the most probable first
    probabilities: np.ndarray  # of these
    chances: np.ndarray  # of these
    before: np.ndarray  # [L, D] complex, the wave before each layer of `watched_kind`
    after: np.ndarray  # [L, D] complex, the wave after it


def watched_kind(model: SEM) -> str:
    """The kind of layer whose wave is watched: the propagators, or the last kind of a model that has none."""
    kinds = list(model.blocks)
    return "propagators" if "propagators" in kinds else kinds[-1]


class Watcher:
    """Draws as a `Decoder` does, token by token; compiled once for each structure of a model.

    Args:
      decoder: whose draws are watched.
    """

    def __init__(self, decoder: Decoder):
        self._decoder = decoder
        self._next = jax.jit(self._next_moment)

    def moments(
        self,
        parts: ModelParts,
        prompts: Sequence[np.ndarray],
        max_tokens: int,
        keys: Array,
        options: SamplingOptions,
        context_length: int | None,
    ) -> Iterator[Moment]:
        """Continues one prompt; arguments as of `Decoder.pieces`, with `prompts` of length 1."""
        prepared = self._decoder.prepare(parts)
        texts = self._decoder.prefill(parts, prompts, keys, context_length)
        for _ in range(max_tokens):
            texts, found = self._next(parts, prepared, texts, options, jnp.int32(context_length or 0))
            values = jax.device_get(found)
            moment = Moment(**{name: value if value.ndim else value.item() for name, value in values.items()})
            yield moment
            if moment.ended:
                return

    def _next_moment(
        self, parts: ModelParts, prepared: Prepared, texts: Text, options: SamplingOptions, context_length: Array
    ) -> tuple[Text, dict[str, Array]]:
        """The text after one token, and the fields of its `Moment`."""
        model = parts.merge()

        def draw(text: Text) -> tuple[Text, dict[str, Array]]:
            text, drawn = self._decoder.next_token(model, prepared, text, options, context_length, OutputObserver())
            log_probs, likeliest = jax.lax.top_k(drawn.log_probs, min(LIKELIEST, len(drawn.log_probs)))
            chances = jax.nn.softmax(drawn.logits)
            before, after = _around(model, drawn.seen)
            return text, {
                "token": drawn.token,
                "ended": text.ended,
                "probability": jnp.exp(drawn.log_probs[drawn.token]),
                "chance": chances[drawn.token],
                "likeliest": likeliest,
                "probabilities": jnp.exp(log_probs),
                "chances": chances[likeliest],
                "before": before,
                "after": after,
            }

        texts, found = jax.vmap(draw)(texts)
        return texts, jax.tree.map(lambda x: x[0], found)


def _around(model: SEM, seen: dict[str, Array]) -> tuple[Array, Array]:
    """The wave [L, D] of the elder reader's one token before and after each layer of the watched kind."""
    depth, watched = model.config.num_layers, watched_kind(model)
    order = [(kind, layer) for kinds in model.passes() for layer in range(depth) for kind in kinds]
    waves = [_channels(seen["encoder"][0], model), *(_channels(seen[kind][0, layer], model) for kind, layer in order)]
    places = [place for place, (kind, _) in enumerate(order) if kind == watched]
    return jnp.stack([waves[place] for place in places]), jnp.stack([waves[place + 1] for place in places])


def _channels(wave: Array, model: SEM) -> Array:
    """[D] of a wave [1, 1, D], or of the [1, 1] that stands for a module that shows no part."""
    return jnp.broadcast_to(wave[0, 0], (model.config.hidden_dim,))
