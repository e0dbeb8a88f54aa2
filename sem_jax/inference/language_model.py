"""A model with its tokenizer: text in, text and probabilities out."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sem_jax.config import Config, SamplingConfig, build
from sem_jax.data import DataError, Tokenizer
from sem_jax.data.arrays import checked_tokens
from sem_jax.inference.decoding import Decoder, SamplingOptions
from sem_jax.modules.model import ModelParts, count_parameters


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
        self._decoder = Decoder(parts.graphdef, forbidden, tokenizer.eos_id)
        self._log_probs = jax.jit(self._all_log_probs)

    def __repr__(self) -> str:
        return (
            f"LanguageModel({self.config.name}, {count_parameters(self.parts.params):,} parameters, "
            f"{self.tokenizer.kind} vocabulary of {self.tokenizer.vocab_size}, step {self.step})"
        )

    def _all_log_probs(self, params: Any, buffers: Any, tokens: jax.Array) -> jax.Array:
        model = ModelParts(self.parts.graphdef, params, buffers).merge()
        psi, _, _ = model(tokens)
        return model.readout.log_probs(psi)

    def log_probs(self, tokens: np.ndarray | jax.Array) -> jax.Array:
        """Log-probabilities of the token after each position.

        Args:
          tokens: [B, S] int; each row starts a document.

        Returns:
          [B, S, V], nats; exp of each row sums to 1.

        Raises:
          DataError: a token id is outside the vocabulary, or the shape is not [B, S].
        """
        checked = checked_tokens(np.asarray(tokens), self.tokenizer.vocab_size)
        return self._log_probs(self.parts.params, self.parts.buffers, jnp.asarray(checked))

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

    def generate(
        self,
        prompt: str | Sequence[str],
        max_tokens: int | None = None,
        seed: int = 0,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
    ) -> Any:
        """Continues a text.

        Args:
          prompt: a text, or several.
          max_tokens: tokens to draw at most; fewer when the model ends the text itself.
          seed: the same seed draws the same text.
          temperature, top_k, top_p: as in `sem_jax.inference.decoding.SamplingOptions`; None takes the configuration's.

        Returns:
          The prompt and its continuation; a list of them for several prompts.

        Raises:
          DataError: the prompt cannot be encoded.
          ConfigError: an option is out of its range.
        """
        if not isinstance(prompt, str):
            return [self.generate(p, max_tokens, seed + i, temperature, top_k, top_p) for i, p in enumerate(prompt)]
        given = {"max_tokens": max_tokens, "temperature": temperature, "top_k": top_k, "top_p": top_p}
        chosen = {name: value for name, value in given.items() if value is not None}
        options = build({"sampling": dataclasses.asdict(self.config.sampling) | chosen}).sampling
        return prompt + self.tokenizer.decode(self._continue(self.encode_prompt(prompt), options, seed))

    def _continue(self, ids: np.ndarray, options: SamplingConfig, seed: int) -> np.ndarray:
        """Draws up to options.max_tokens ids.

        Positions beyond the training length are unknown phases to the model. So after half a context length of drawn
        tokens the state starts again from the last half, as at the start of a training sequence: one more token read
        for each drawn, still O(1) a token.
        """
        half = max((options.context_length or self.config.data.seq_length) // 2, 1)
        sampling = SamplingOptions(options.temperature, options.top_k, options.top_p)
        drawn = np.zeros(0, np.int32)
        while len(drawn) < options.max_tokens:
            context = np.concatenate([ids, drawn])[-half:]
            key = jax.random.fold_in(jax.random.key(seed), len(drawn))
            (new,) = self._decoder.generate(self.parts.params, self.parts.buffers, context[None], half, key, sampling)
            drawn = np.concatenate([drawn, new])
            if len(new) < half:  # the model has ended the text
                break
        return drawn[: options.max_tokens]
