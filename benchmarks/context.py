"""Beyond the training length: should generation restart the model's state, or carry it on?

Command:  python benchmarks/context.py --workdir=runs/context [--contexts=8] [--sequences=64]

Training sees sequences of C = data.seq_length tokens, so the phases of later positions are new to the model. Held-out
text at positions from C to --contexts * C of its documents is scored, in nats a token, in two ways: "unbounded" carries
the state from the start of the document, however far; "restart", as generation does it, has read the last C / 2 to C
tokens only. Both score the same tokens.
"""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
from absl import app, flags
from timing import table

import sem_jax
from sem_jax.data import open_dataset
from sem_jax.inference.decoding import reader_starts
from sem_jax.modules.model import ModelParts
from sem_jax.training.workdir import with_own_tokenizer

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of a run.", required=True)
_CONTEXTS = flags.DEFINE_integer("contexts", 8, "Length of a sequence in training lengths.")
_SEQUENCES = flags.DEFINE_integer("sequences", 64, "Sequences to score, spread over the validation split.")


@jax.jit
def nats(parts: ModelParts, inputs: jax.Array, targets: jax.Array) -> jax.Array:
    """−log P of each target: [B, S] twice to [B, S]."""
    model = parts.merge()
    return -model.readout.target_log_prob(model(inputs)[0], targets)[0]


def long_passages(model: sem_jax.LanguageModel, length: int, count: int) -> np.ndarray:
    """Held-out passages of `length` + 1 tokens, each within one document, [at most count, length + 1]."""
    config = with_own_tokenizer(model.config, _WORKDIR.value)
    data = dataclasses.replace(config.data, seq_length=length, reset_at_boundary=True)
    validation = open_dataset(data, config.training.seed, 1).validation
    batches = list(validation.evaluation_batches(validation.batches_per_epoch))
    whole = [batch.tokens[0] for batch in batches if batch.weights.all() and not batch.resets[:, 1:].any()]
    return np.stack(whole)[:: max(len(whole) // count, 1)][:count]


def restarted(parts: ModelParts, tokens: np.ndarray, context: int) -> np.ndarray:
    """Nats of the targets after the first `context`, each from the state that generation would have there."""
    found, scored = [], context
    while scored < tokens.shape[1] - 1:
        start = reader_starts(scored + 1, context)[0]  # of the reader that decides the next targets, until it is full
        window = tokens[:, start : start + context + 1]
        found.append(np.asarray(nats(parts, window[:, :-1], window[:, 1:]))[:, scored - start :])
        scored += found[-1].shape[1]
    return np.concatenate(found, axis=1)


def main(argv: list[str]) -> None:
    del argv
    model = sem_jax.load(_WORKDIR.value)
    context = model.config.data.seq_length
    tokens = long_passages(model, _CONTEXTS.value * context, _SEQUENCES.value)
    carried = np.asarray(nats(model.parts, tokens[:, :-1], tokens[:, 1:]))
    restart = restarted(model.parts, tokens, context)
    print(f"{model!r}\n{len(tokens)} passages of {tokens.shape[1] - 1} tokens, C = {context}\n")
    rows = [["0 to C, both", f"{carried[:, :context].mean():.4f}", "", ""]]
    for first in range(1, _CONTEXTS.value):
        far = carried[:, first * context : (first + 1) * context]
        near = restart[:, (first - 1) * context : first * context]
        rows.append([f"{first} C to {first + 1} C", *_compared(near, far)])
    rows.append(["all beyond C", *_compared(restart, carried[:, context:])])
    print(table(["position", "restart", "unbounded", "difference, with its standard error"], rows))


def _compared(restart: np.ndarray, unbounded: np.ndarray) -> list[str]:
    differences = (unbounded - restart).mean(axis=1)  # of each passage
    error = differences.std(ddof=1) / len(differences) ** 0.5
    return [f"{restart.mean():.4f}", f"{unbounded.mean():.4f}", f"{differences.mean():+.4f} ± {error:.4f}"]


if __name__ == "__main__":
    app.run(main)
