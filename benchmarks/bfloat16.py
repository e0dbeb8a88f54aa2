"""Do matrix products of a training step gain by bfloat16 factors with float32 sums?

Command:  python benchmarks/bfloat16.py [--dim=160 --tokens=768 --heads=8 --vocabulary=32768 --seconds=1 --json=FILE]

The forms that the step has: a projection, the cotangents of its input and of its weight, the scores of the state space
within a chunk, and the logits of a chunk. Factors are float32 arrays in memory, as in the step, so that the rounding to
bfloat16 counts. Prints the median of each in float32, with bfloat16 factors, and their ratio, beside the largest
difference relative to the largest entry.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from absl import app, flags
from jax import Array
from timing import Timing, bound, interleaved, machine, milliseconds, table, write_json

from sem_jax.core.complex_ops import HIGHEST
from sem_jax.core.duality import CHUNK

_DIM = flags.DEFINE_integer("dim", 160, "Channels.")
_TOKENS = flags.DEFINE_integer("tokens", 768, "Tokens of a batch.")
_HEADS = flags.DEFINE_integer("heads", 8, "Heads of the state space; each has --states states.")
_STATES = flags.DEFINE_integer("states", 32, "States.")
_VOCABULARY = flags.DEFINE_integer("vocabulary", 32_768, "Rows of the readout.")
_SECONDS = flags.DEFINE_float("seconds", 1.0, "Time for each measurement.")
_JSON = flags.DEFINE_string("json", "", "File for the same numbers.")


class Product(NamedTuple):
    """One form, timed both ways."""

    name: str
    single: Timing
    half: Timing
    error: float  # largest difference, relative to the largest entry


def forms() -> dict[str, tuple[str, tuple[int, ...], tuple[int, ...]]]:
    """Subscripts and shapes of the factors, by name."""
    dim, tokens, states = _DIM.value, _TOKENS.value, 2 * _STATES.value  # real and imaginary parts
    scores = (_HEADS.value, tokens // CHUNK, states, CHUNK)
    logits = 128, _VOCABULARY.value
    return {
        "projection": ("ti,oi->to", (tokens, dim), (dim, dim)),
        "cotangent of its input": ("to,oi->ti", (tokens, dim), (dim, dim)),
        "cotangent of its weight": ("to,ti->oi", (tokens, dim), (tokens, dim)),
        "scores of a chunk": ("hbns,hbnt->hbst", scores, scores),
        "logits": ("ti,vi->tv", (logits[0], 2 * dim), (logits[1], 2 * dim)),
        "cotangent of the wave": ("tv,vi->ti", logits, (logits[1], 2 * dim)),
        "cotangent of the readout": ("tv,ti->vi", logits, (logits[0], 2 * dim)),
    }


def measure(name: str, subscripts: str, first: tuple[int, ...], second: tuple[int, ...]) -> Product:
    def single(a: Array, b: Array) -> Array:
        return jnp.einsum(subscripts, a, b, precision=HIGHEST)

    def half(a: Array, b: Array) -> Array:
        factors = a.astype(jnp.bfloat16), b.astype(jnp.bfloat16)
        return jnp.einsum(subscripts, *factors, preferred_element_type=jnp.float32)

    a, b = (jax.random.normal(jax.random.key(seed), shape) for seed, shape in enumerate((first, second)))
    times = interleaved({"single": bound(single, a, b), "half": bound(half, a, b)}, _SECONDS.value)
    exact = single(a, b)
    error = float(jnp.max(jnp.abs(half(a, b) - exact)) / jnp.max(jnp.abs(exact)))
    return Product(name, times["single"], times["half"], error)


def main(argv: list[str]) -> None:
    del argv
    host = machine()
    print(host.describe(), flush=True)
    products = [measure(name, *form) for name, form in forms().items()]
    rows = [
        [
            p.name,
            milliseconds(p.single),
            milliseconds(p.half),
            f"{p.single.median / p.half.median:.2f}",
            f"{p.error:.1e}",
        ]
        for p in products
    ]
    print(table(["product", "float32, ms", "bfloat16, ms", "times as fast", "difference"], rows))
    if _JSON.value:
        write_json(_JSON.value, {"machine": host, "products": products})


if __name__ == "__main__":
    app.run(main)
