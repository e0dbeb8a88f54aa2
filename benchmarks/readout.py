"""What does the exact likelihood save: a Gram matrix and O(D²) a token, or logits over the whole vocabulary?

Command:  python benchmarks/readout.py [--vocabularies=1024,8192,32768] [--tokens=512,4096] [--dim=128] [--seconds=1]
          [--nomemory] [--json=FILE]

−log P(y) of random waves and targets and its gradient to the waves and the readout, once by `born.target_log_prob`, in
which V enters only through the Gram matrix, once by `born.log_probs` and a look-up in the [tokens, V] array. Both give
the same numbers; the largest difference is printed. Memory is the peak of a process of its own, without programs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from parts import both_passes
from timing import MIB, Timing, interleaved, machine, milliseconds, peak_memory, table, write_json

from sem_jax.core import born
from sem_jax.core.complex_ops import complex_normal

_VOCABULARIES = flags.DEFINE_list("vocabularies", ["1024", "8192", "32768"], "V.")
_TOKENS = flags.DEFINE_list("tokens", ["512", "4096"], "Waves.")
_DIM = flags.DEFINE_integer("dim", 128, "Channels.")
_SECONDS = flags.DEFINE_float("seconds", 1.0, "Time for each measurement.")
_MEMORY = flags.DEFINE_bool("memory", True, "Measure memory.")
_JSON = flags.DEFINE_string("json", "", "File for the same numbers.")

FLOOR = 1e-6


class Point(NamedTuple):
    """Both forms at one size."""

    vocab: int
    tokens: int
    gram: Timing
    logits: Timing
    gram_memory: float | None  # bytes
    logits_memory: float | None
    difference: float  # nats, largest


def by_gram_matrix(moving: Any, targets: jax.Array) -> jax.Array:
    return -born.target_log_prob(*moving, targets, FLOOR)[0]


def by_logits(moving: Any, targets: jax.Array) -> jax.Array:
    return -jnp.take_along_axis(born.log_probs(*moving, FLOOR)[0], targets[:, None], axis=-1)[:, 0]


FORMS = {"gram": by_gram_matrix, "logits": by_logits}


def make(form: str, dim: int, vocab: int, tokens: int) -> Callable[[], Any]:
    """Forward and backward pass of one form."""
    keys = jax.random.split(jax.random.key(0), 3)
    weight, psi = complex_normal(keys[0], (vocab, dim), 1 / dim), complex_normal(keys[1], (tokens, dim), 1.0)
    targets = jax.random.randint(keys[2], (tokens,), 0, vocab)
    return both_passes(FORMS[form], (psi, weight, jnp.zeros(vocab)), targets)["training"]


def measure(vocab: int, tokens: int) -> Point:
    contenders = {form: make(form, _DIM.value, vocab, tokens) for form in FORMS}
    values = [np.asarray(run()[0]) for run in contenders.values()]
    times = interleaved(contenders, _SECONDS.value)
    memory = {f: peak_memory(make, f, _DIM.value, vocab, tokens) if _MEMORY.value else None for f in FORMS}
    difference = float(np.abs(values[0] - values[1]).max())
    return Point(vocab, tokens, times["gram"], times["logits"], memory["gram"], memory["logits"], difference)


def main(argv: list[str]) -> None:
    del argv
    host = machine()
    print(host.describe(), flush=True)
    points = [measure(v, n) for v in map(int, _VOCABULARIES.value) for n in map(int, _TOKENS.value)]
    rows = []
    for p in points:
        memory = [f"{m / MIB:,.0f}" if m is not None else "" for m in (p.gram_memory, p.logits_memory)]
        ratio = f"{p.logits.median / p.gram.median:.1f}"
        rows.append(
            [p.vocab, p.tokens, milliseconds(p.gram), milliseconds(p.logits), ratio, *memory, f"{p.difference:.1e}"]
        )
    header = ["V", "tokens", "Gram matrix, ms", "logits, ms", "ratio", "Gram matrix, MiB", "logits, MiB"]
    print(table([*header, "difference, nats"], rows))
    if _JSON.value:
        write_json(_JSON.value, {"machine": host, "dim": _DIM.value, "points": points})


if __name__ == "__main__":
    app.run(main)
