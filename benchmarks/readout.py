"""What does the likelihood of a whole vocabulary cost, in time and memory?

Command:  python benchmarks/readout.py [--vocabularies=1024,8192,32768] [--tokens=512,4096] [--dim=128] [--seconds=1]
          [--nomemory] [--json=FILE]

−log P(y) of random waves and targets, and its gradient to waves and readout, in four forms:

    coherent   the default, softmax_v(Re(W_v·ψ) + β_v), by chunks of tokens (`coherent.target_log_prob`)
    logits     the same over an array [tokens, V] (`coherent.log_probs`)
    PyTorch    the same, as its users write it: `linear` of [Re ψ, Im ψ] and `cross_entropy`
    Born       the linear Born rule, in which V enters only through a Gram matrix (`born.target_log_prob`)

The first three give the same numbers; their largest difference is printed. Memory is the peak of a process of its own,
without programs. PyTorch runs in one, too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from parts import both_passes
from timing import MIB, Timing, in_own_process, interleaved, machine, milliseconds, peak_memory, table, write_json

from sem_jax.core import born, coherent
from sem_jax.core.complex_ops import complex_normal

_VOCABULARIES = flags.DEFINE_list("vocabularies", ["1024", "8192", "32768"], "V.")
_TOKENS = flags.DEFINE_list("tokens", ["512", "4096"], "Waves.")
_DIM = flags.DEFINE_integer("dim", 128, "Channels.")
_SECONDS = flags.DEFINE_float("seconds", 1.0, "Time for each measurement.")
_MEMORY = flags.DEFINE_bool("memory", True, "Measure memory.")
_JSON = flags.DEFINE_string("json", "", "File for the same numbers.")

FLOOR = 1e-6


class Point(NamedTuple):
    """All forms at one size, by name."""

    vocab: int
    tokens: int
    times: dict[str, Timing]
    memory: dict[str, float | None]  # bytes
    difference: float  # nats, largest


def by_chunks(moving: Any, targets: jax.Array) -> jax.Array:
    return -coherent.target_log_prob(*moving, targets)[0]


def by_logits(moving: Any, targets: jax.Array) -> jax.Array:
    return -jnp.take_along_axis(coherent.log_probs(*moving)[0], targets[:, None], axis=-1)[:, 0]


def by_gram_matrix(moving: Any, targets: jax.Array) -> jax.Array:
    return -born.target_log_prob(*moving, targets, FLOOR)[0]


OURS = {"coherent": by_chunks, "logits": by_logits, "Born": by_gram_matrix}
FORMS = ("coherent", "logits", "PyTorch", "Born")


def inputs(dim: int, vocab: int, tokens: int) -> tuple[tuple[jax.Array, ...], jax.Array]:
    """((psi, weight, bias), targets), random."""
    keys = jax.random.split(jax.random.key(0), 3)
    weight, psi = complex_normal(keys[0], (vocab, dim), 1 / dim), complex_normal(keys[1], (tokens, dim), 1.0)
    return (psi, weight, jnp.zeros(vocab)), jax.random.randint(keys[2], (tokens,), 0, vocab)


def make(form: str, dim: int, vocab: int, tokens: int) -> Callable[[], Any]:
    """Forward and backward pass of one form; its first result is −log P(y) of each token."""
    moving, targets = inputs(dim, vocab, tokens)
    return both_passes(OURS[form], moving, targets)["training"] if form in OURS else in_torch(moving, targets)


def in_torch(moving: tuple[jax.Array, ...], targets: jax.Array) -> Callable[[], Any]:
    """The same in PyTorch."""
    import torch
    from torch.nn.functional import cross_entropy, linear

    psi, weight, bias = moving
    rows = [jnp.concatenate([z.real, z.imag], axis=-1) for z in (psi, weight.conj())]
    x, w, b = (torch.tensor(np.asarray(a), requires_grad=True) for a in (*rows, bias))
    y = torch.tensor(np.asarray(targets)).long()

    def run() -> tuple[np.ndarray, Any]:
        loss = cross_entropy(linear(x, w, b), y, reduction="none")
        return loss.detach().numpy(), torch.autograd.grad(loss.sum(), (x, w, b))

    return run


def measure(vocab: int, tokens: int) -> Point:
    size = _DIM.value, vocab, tokens
    contenders = {form: make(form, *size) if form in OURS else in_own_process(make, form, *size) for form in FORMS}
    nats = [np.asarray(make(form, *size)()[0]) for form in ("coherent", "logits", "PyTorch")]
    difference = max(float(np.abs(each - nats[0]).max()) for each in nats[1:])
    times = interleaved(contenders, _SECONDS.value)
    memory = {form: peak_memory(make, form, *size) if _MEMORY.value else None for form in FORMS}
    return Point(vocab, tokens, times, memory, difference)


def row(point: Point) -> list[str]:
    times = [milliseconds(point.times[form]) for form in FORMS]
    memory = ["" if point.memory[form] is None else f"{point.memory[form] / MIB:,.0f}" for form in FORMS]
    return [str(point.vocab), str(point.tokens), *times, ", ".join(memory), f"{point.difference:.1e}"]


def main(argv: list[str]) -> None:
    del argv
    host = machine()
    print(host.describe(), flush=True)
    points = [measure(v, n) for v in map(int, _VOCABULARIES.value) for n in map(int, _TOKENS.value)]
    header = ["V", "tokens", *(f"{form}, ms" for form in FORMS), "memory, MiB", "difference, nats"]
    print(table(header, map(row, points)))
    if _JSON.value:
        write_json(_JSON.value, {"machine": host, "dim": _DIM.value, "points": points})


if __name__ == "__main__":
    app.run(main)
