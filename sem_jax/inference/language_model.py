"""A model with its tokenizer: text in, text and probabilities out."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Literal, TypeAlias, overload

import jax
import jax.numpy as jnp
import numpy as np

from sem_jax.config import Config, ConfigError, SamplingConfig, build
from sem_jax.data import DataError, Tokenizer
from sem_jax.data.arrays import checked_tokens
from sem_jax.inference.decoding import Decoder, SamplingOptions
from sem_jax.inference.growing_text import GrowingText
from sem_jax.inference.watching import Moment, Watcher
from sem_jax.modules.model import ModelParts, count_parameters

ContextMode: TypeAlias = Literal["restart", "unbounded"]


class LanguageModel:
    """A Signal-Entropic Model that reads and writes text.

    Attributes:
      config: the configuration it was built from.
      tokenizer: text to ids and back.
      parts: structure, parameters and buffers.
      step: training steps behind the parameters.
    """

    def __init__(self, config: Config, tokenizer: Tokenizer, parts: ModelParts, step: int = 0):
        self.config = config
        self.tokenizer = tokenizer
        self.parts = parts
        self.step = step
        never_drawn = (tokenizer.pad_id, tokenizer.bos_id, tokenizer.unk_id, tokenizer.boundary_id)
        forbidden = np.isin(np.arange(tokenizer.vocab_size), [i for i in never_drawn if i is not None])
        self._decoder = Decoder(forbidden, tokenizer.eos_id)
        self._watcher = Watcher(self._decoder)
        self._log_probs = jax.jit(_all_log_probs)

    def __repr__(self) -> str:
        return (
            f"LanguageModel({self.config.name}, {count_parameters(self.parts.params):,} parameters, "
            f"{self.tokenizer.kind} vocabulary of {self.tokenizer.vocab_size}, step {self.step})"
        )

    def log_probs(self, tokens: np.ndarray | jax.Array) -> jax.Array:
        """Log-probabilities of the token after each position.

        >>> model = sem_jax.init(TINY)
        >>> tokens = model.encode_prompt("wave")[None]  # the start of a document, and four bytes
        >>> log_probs = model.log_probs(tokens)
        >>> log_probs.shape
        (1, 5, 261)
        >>> bool(jnp.allclose(jnp.exp(log_probs).sum(axis=-1), 1, atol=1e-4))
        True

        Args:
          tokens: [B, S] int; each row starts a document.

        Returns:
          [B, S, V], nats; exp of each row sums to 1.

        Raises:
          DataError: a token id is outside the vocabulary, or the shape is not [B, S].
        """
        checked = checked_tokens(np.asarray(tokens), self.tokenizer.vocab_size)
        return self._log_probs(self.parts, jnp.asarray(checked))

    def encode_prompt(self, prompt: str) -> np.ndarray:
        """Ids of a prompt as the start of a document, [n], n >= 1.

        Raises:
          DataError: the prompt is empty and the vocabulary has no boundary token, or a character is unknown.
        """
        ids = self.tokenizer.encode(prompt)
        if self.tokenizer.boundary_id is not None:
            ids = np.concatenate([[self.tokenizer.boundary_id], ids])
        if not len(ids):
            raise DataError("the prompt is empty; this vocabulary needs at least one character to start from")
        return ids.astype(np.int32)

    @overload
    def generate(  # type: ignore[overload-overlap]  # a str is a sequence of strings, too
        self,
        prompt: str,
        max_tokens: int | None = None,
        seed: int = 0,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        context: ContextMode | None = None,
    ) -> str: ...

    @overload
    def generate(
        self,
        prompt: Sequence[str],
        max_tokens: int | None = None,
        seed: int = 0,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        context: ContextMode | None = None,
    ) -> list[str]: ...

    def generate(
        self,
        prompt: str | Sequence[str],
        max_tokens: int | None = None,
        seed: int = 0,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        context: ContextMode | None = None,
    ) -> str | list[str]:
        """Continues a text, or several at once, in O(1) a token.

        >>> model = sem_jax.init(TINY)
        >>> text = model.generate("wave", max_tokens=1, seed=1)
        >>> text.startswith("wave")
        True
        >>> model.generate(["phase", "wave"], max_tokens=1)[1] == text  # the second text of seed 0
        True

        Args:
          prompt: a text, or several.
          max_tokens: tokens to draw at most; fewer when the model ends the text itself.
          seed: the same seed draws the same text. The i-th of several prompts, counted from 0, draws what it would draw
            alone with seed + i, but where two tokens are as probable to the last bit.
          temperature, top_k, top_p: as in `sem_jax.inference.decoding.SamplingOptions`; None takes the configuration's.
          context: what happens after `sampling.context_length` tokens (0: the training length), whose phases the model
            does not know. "restart" goes on with a state that has read the last half of them only, again and again;
            "unbounded" carries the state on, so that the whole text has its influence. A token costs the same in both.
            None takes the configuration's, which is "restart" unless a run says otherwise: 200 steps of
            configs/quickstart.py give 5.470 nats a token for restart and 5.950 for unbounded on held-out text at 1 to 8
            training lengths (`python benchmarks/context.py --workdir=DIR`).

        Returns:
          The prompt and its continuation; a list of them for several prompts.

        Raises:
          DataError: a prompt cannot be encoded.
          ConfigError: an option is out of its range.
        """
        options = self._options(max_tokens, temperature, top_k, top_p, context)
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        if not prompts:
            return []
        pieces = list(self._pieces(prompts, options, seed))
        texts = [
            text + self.tokenizer.decode(np.concatenate([piece[row] for piece in pieces]))
            for row, text in enumerate(prompts)
        ]
        return texts[0] if isinstance(prompt, str) else texts

    def stream(self, prompt: str, max_tokens: int | None = None, seed: int = 0) -> Iterator[str]:
        """What `generate` appends to the prompt, piece by piece while it is drawn.

        >>> model = sem_jax.init(TINY)
        >>> pieces = model.stream("wave", max_tokens=3)
        >>> "wave" + "".join(pieces) == model.generate("wave", max_tokens=3)
        True

        Args:
          prompt, max_tokens, seed: as in `generate`.

        Yields:
          Text of at most `sem_jax.inference.decoding.DRAW_CHUNK` tokens.

        Raises:
          DataError, ConfigError: as `generate` does.
        """
        text = GrowingText(self.tokenizer)
        for (piece,) in self._pieces([prompt], self._options(max_tokens), seed):
            yield text.append(piece)
        yield text.rest()

    def watch(
        self,
        prompt: str,
        max_tokens: int | None = None,
        seed: int = 0,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
    ) -> Iterator[Moment]:
        """What `generate` draws, token by token, each with what the model computed for it.

        >>> model = sem_jax.init(TINY)
        >>> [moment] = model.watch("wave", max_tokens=1)
        >>> moment.after.shape  # the wave after the propagator of each layer
        (1, 16)

        Args:
          prompt, max_tokens, seed, temperature, top_k, top_p: as in `generate`.

        Returns:
          An iterator over the tokens; nothing is computed before it is asked for one.

        Raises:
          DataError, ConfigError: as `generate` does, at once.
        """
        options = self._options(max_tokens, temperature, top_k, top_p)
        return self._watcher.moments(self.parts, *self._request([prompt], options, seed))

    def _options(
        self,
        max_tokens: int | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        context: ContextMode | None = None,
    ) -> SamplingConfig:
        given = {
            "max_tokens": max_tokens,
            "temperature": temperature,
            "top_k": top_k,
            "top_p": top_p,
            "context": context,
        }
        chosen = {name: value for name, value in given.items() if value is not None}
        return build({"sampling": dataclasses.asdict(self.config.sampling) | chosen}).sampling

    def _pieces(self, prompts: list[str], options: SamplingConfig, seed: int) -> Iterator[list[np.ndarray]]:
        """The ids that continue each prompt, piece by piece."""
        return self._decoder.pieces(self.parts, *self._request(prompts, options, seed))

    def _request(
        self, prompts: list[str], options: SamplingConfig, seed: int
    ) -> tuple[list[np.ndarray], int, jax.Array, SamplingOptions, int | None]:
        """What `Decoder.pieces` wants to know besides the model."""
        if not 0 <= seed < 2**32:
            raise ConfigError(f"seed = {seed} must lie in 0..{2**32 - 1}")
        seeds = ((seed + np.arange(len(prompts))) % 2**32).astype(np.uint32)
        return (
            [self.encode_prompt(prompt) for prompt in prompts],
            options.max_tokens,
            jax.vmap(jax.random.key)(seeds),
            SamplingOptions(options.temperature, options.top_k, options.top_p),
            None if options.context == "unbounded" else options.context_length or self.config.data.seq_length,
        )


def _all_log_probs(parts: ModelParts, tokens: jax.Array) -> jax.Array:
    model = parts.merge()
    return model.readout.log_probs(model(tokens)[0])
