"""A model on the page: what is told of it, and a request turned into the lines that answer it."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from http import HTTPStatus
from typing import Any

import numpy as np

from sem_jax.config import ConfigError
from sem_jax.config.fields import shown
from sem_jax.data import Tokenizer
from sem_jax.data.tokenizers import SPECIAL_TOKENS
from sem_jax.errors import SemJaxError
from sem_jax.inference.growing_text import GrowingText
from sem_jax.inference.language_model import LanguageModel
from sem_jax.inference.watching import Moment, watched_kind
from sem_jax.modules.model import count_parameters
from sem_jax.playground.guard import Refused
from sem_jax.playground.turns import Turns

LONGEST_PROMPT = 10_000  # characters
MOST_TOKENS = 2000  # of one text, so that others have their turn
_OPTIONS = ("temperature", "top_k", "top_p")
_FIELDS = ("model", "prompt", "max_tokens", "seed", *_OPTIONS)
_LARGEST_PART = 32767  # of the whole numbers in which a wave is sent


class Session:
    """A model, its name and whose turn it is to use it."""

    def __init__(self, name: str, model: LanguageModel):
        self.name = name
        self.model = model
        self.turns = Turns()

    def warm_up(self) -> None:
        """Compiles what every request needs."""
        for _ in self.model.watch(self.model.tokenizer.decode([0]), max_tokens=1):
            pass

    def description(self) -> dict[str, Any]:
        """What the page tells of the model, and the defaults of its controls."""
        config, model = self.model.config, self.model
        return {
            "name": self.name,
            "run": config.name,
            "step": model.step,
            "parameters": count_parameters(model.parts.params),
            "vocabulary": f"{model.tokenizer.vocab_size:,} ({model.tokenizer.kind})",
            "layers": config.model.num_layers,
            "channels": config.model.hidden_dim,
            "kind": watched_kind(model.parts.merge()).removesuffix("s"),
            "defaults": self.defaults,
        }

    @property
    def defaults(self) -> dict[str, Any]:
        """Values of the controls until somebody changes them."""
        sampling = self.model.config.sampling
        options = {name: getattr(sampling, name) for name in ("prompt", *_OPTIONS)}
        return options | {"max_tokens": min(sampling.max_tokens, MOST_TOKENS), "seed": 0}

    def lines(self, values: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """The answer to a request, line by line; nothing is computed before the first is asked for.

        Args:
          values: of the page's controls.

        Raises:
          ConfigError, DataError: a value is impossible; at once, with the words of `LanguageModel.generate`.
        """
        prompt, max_tokens, seed = ((self.defaults | values)[name] for name in ("prompt", "max_tokens", "seed"))
        if not isinstance(prompt, str) or len(prompt) > LONGEST_PROMPT:
            raise ConfigError(f"the prompt must be a text of at most {LONGEST_PROMPT:,} characters")
        if isinstance(seed, bool) or not isinstance(seed, int):
            raise ConfigError(f"seed = {shown(seed)} must be a whole number")
        options = {name: values.get(name) for name in _OPTIONS}
        moments = self.model.watch(prompt, max_tokens, seed, **options)
        if max_tokens > MOST_TOKENS:
            raise ConfigError(f"max_tokens = {max_tokens} must be at most {MOST_TOKENS} on this page")
        return self._lines(moments)

    def _lines(self, moments: Iterator[Moment]) -> Iterator[dict[str, Any]]:
        text = GrowingText(self.model.tokenizer)
        ended = False
        for moment in moments:
            if not np.isfinite(moment.probabilities).all():
                raise SemJaxError("the model gives no finite probabilities; its parameters are damaged")
            ended = moment.ended
            yield {
                "token": moment.token,
                "label": self._label(moment.token),
                "text": "" if ended else text.append(np.array([moment.token])),
                "probability": moment.probability,
                "chance": moment.chance,
                "likeliest": [
                    [int(token), self._label(int(token)), float(probability), float(chance)]
                    for token, probability, chance in zip(
                        moment.likeliest, moment.probabilities, moment.chances, strict=True
                    )
                ],
                "before": packed(moment.before),
                "after": packed(moment.after),
            }
        yield {"done": "the model has ended the text" if ended else "", "text": text.rest()}

    def _label(self, token: int) -> str:
        return token_label(self.model.tokenizer, token)


def token_label(tokenizer: Tokenizer, token: int) -> str:
    """How a token is shown by itself: its text, or the name of a special token."""
    specials = (tokenizer.pad_id, tokenizer.eos_id, tokenizer.bos_id, tokenizer.unk_id, tokenizer.boundary_id)
    if token in specials:
        return SPECIAL_TOKENS[specials.index(token)]
    return tokenizer.decode([token])


def packed(wave: np.ndarray) -> dict[str, Any]:
    """A wave [L, D] for the page: of each layer its largest part, and (re, im) of each channel in units of it.

    The units are 1/32767, the numbers little-endian int16 in base64. What is not finite is sent as 0.
    """
    parts = np.stack([wave.real, wave.imag], axis=-1).astype(np.float64)
    parts = np.nan_to_num(parts, nan=0.0, posinf=0.0, neginf=0.0)
    largest = np.abs(parts).max(axis=(1, 2))
    units = parts / np.where(largest > 0, largest, 1)[:, None, None] * _LARGEST_PART
    return {
        "largest": largest.tolist(),
        "parts": base64.b64encode(np.rint(units).astype("<i2").tobytes()).decode("ascii"),
    }


def answer(sessions: list[Session], values: Any) -> tuple[Session, Iterator[dict[str, Any]]]:
    """Which model a request is for, and the lines that answer it.

    Raises:
      Refused: the request is not what the page sends, or a value of it is impossible.
    """
    if not isinstance(values, dict):
        raise Refused(HTTPStatus.BAD_REQUEST, "the body must be a JSON object")
    if unknown := sorted(values.keys() - set(_FIELDS)):
        raise Refused(HTTPStatus.BAD_REQUEST, f"{shown(unknown[0])} is none of {', '.join(_FIELDS)}")
    index = values.get("model", 0)
    if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < len(sessions):
        raise Refused(HTTPStatus.BAD_REQUEST, f"model = {shown(index)} must be a number below {len(sessions)}")
    try:
        return sessions[index], sessions[index].lines(values)
    except SemJaxError as error:
        raise Refused(HTTPStatus.BAD_REQUEST, str(error)) from error
