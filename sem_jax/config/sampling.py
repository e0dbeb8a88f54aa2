"""Sampling: the defaults of generation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sem_jax.config.fields import LONGEST, MOST_IDS, setting


@dataclass(frozen=True)
class SamplingConfig:
    """Defaults of generation."""

    prompt: str = setting("\n", "text that a sample starts from")
    max_tokens: int = setting(200, "length of a sample", unit="tokens", at_least=1, at_most=LONGEST)
    temperature: float = setting(
        0.8, "divides the logarithms of the probabilities; 0: the likeliest token", at_least=0, at_most=1000
    )
    top_k: int = setting(
        50, "draw from the so many likeliest tokens; 0: no limit", unit="tokens", at_least=0, at_most=MOST_IDS
    )
    top_p: float = setting(
        0.95, "draw from the likeliest tokens that hold this share of the probability", above=0, at_most=1
    )
    context: Literal["restart", "unbounded"] = setting(
        "restart", "after context_length tokens: read the last half of them afresh, or carry the state on"
    )
    context_length: int = setting(
        0,
        "tokens read at most before a restart; 0: data.seq_length, what training has seen",
        unit="tokens",
        at_least=0,
        at_most=LONGEST,
    )
