"""Batches: a pure function of (seed, step), so that any step can be had at any time and resuming needs no state."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

import numpy as np

from sem_jax.data.errors import DataError
from sem_jax.data.permutation import permute

_EVALUATION_SEED = 20  # fixed, so that runs with different seeds are judged on the same windows


class Batch(NamedTuple):
    """Sequences of `seq_length + 1` tokens: the first `seq_length` are inputs, the last `seq_length` are targets.

    Attributes:
      tokens: `[batch, seq_length + 1]` int32.
      resets: `[batch, seq_length + 1]` bool, True where a document starts and a model forgets what came before.
      weights: `[batch, seq_length]` float32, 1 where the target is text or eos, 0 for padding and for a boundary: eos
        has already ended the document, that another one follows is a fact about packing, not about language.
    """

    tokens: np.ndarray
    resets: np.ndarray
    weights: np.ndarray


class TrainingBatches(Protocol):
    """A split to train on."""

    def batch(self, step: int, rows: np.ndarray | None = None) -> Batch:
        """The training batch of a step, counted from 0; equal arguments give equal bits.

        Args:
          step: of the run.
          rows: which sequences of it to make, ascending numbers below `global_batch`; None: all.
        """

    def recut(self, seq_length: int, global_batch: int) -> TrainingBatches:
        """The same tokens in batches of another size; raises DataError where they hold no such sequence."""


class EvaluationBatches(Protocol):
    """A split to judge by."""

    def evaluation_batches(self, count: int) -> Iterator[Batch]:
        """At most `count` batches, the same at every call."""


@dataclass(frozen=True)
class Sequences:
    """Cuts sequences out of a stream of ids.

    Attributes:
      stream: `[n]` integers.
      seq_length: number of targets in a sequence.
      boundary_id: the token that starts a document, or None.
      reset_at_boundary: whether to report where documents start.
    """

    stream: np.ndarray
    seq_length: int
    boundary_id: int | None
    reset_at_boundary: bool

    def __len__(self) -> int:
        return len(self.stream)

    def cut(self, starts: np.ndarray) -> Batch:
        """The sequences at `starts` `[batch]`; what reaches past the end of the stream has weight 0."""
        positions = starts[:, None] + np.arange(self.seq_length + 1)
        inside = positions < len(self.stream)
        tokens = np.where(inside, self.stream[np.minimum(positions, len(self.stream) - 1)], 0).astype(np.int32)
        boundary = np.zeros_like(inside) if self.boundary_id is None else inside & (tokens == self.boundary_id)
        weights = (inside & ~boundary)[:, 1:].astype(np.float32)
        return Batch(tokens, boundary & self.reset_at_boundary, weights)


class Chunks:
    """Consecutive chunks that overlap by one token: in an epoch every token but the first is a target exactly once.

    Each epoch visits the chunks in a new order; a batch may hold the end of one epoch and the start of the next.
    """

    def __init__(self, sequences: Sequences, seed: int, global_batch: int):
        """Raises DataError when the stream holds no target."""
        if len(sequences) < 2:
            raise DataError(f"a split of {len(sequences)} token has nothing to predict; give more text")
        self._sequences = sequences
        self._seed = seed
        self._global_batch = global_batch
        self._num_chunks = -(-(len(sequences) - 1) // sequences.seq_length)

    @property
    def batches_per_epoch(self) -> int:
        """Batches that cover all chunks once, the last perhaps in part."""
        return -(-self._num_chunks // self._global_batch)

    def batch(self, step: int, rows: np.ndarray | None = None) -> Batch:
        """The training batch of a step, counted from 0, or some rows of it."""
        rows = np.arange(self._global_batch) if rows is None else rows
        epochs, places = np.divmod(step * self._global_batch + rows, self._num_chunks)
        chunks = np.empty_like(places)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            chunks[here] = permute(places[here], self._num_chunks, (self._seed, int(epoch)))
        return self._sequences.cut(chunks * self._sequences.seq_length)

    def recut(self, seq_length: int, global_batch: int) -> Chunks:
        """The same tokens in batches of another size."""
        return Chunks(replace(self._sequences, seq_length=seq_length), self._seed, global_batch)

    def evaluation_batches(self, count: int) -> Iterator[Batch]:
        """Chunks in their order: all of them if `count` batches hold them, else as many, evenly spread over the split.

        The last batch is filled up with rows of weight 0.
        """
        num_rows = min(count * self._global_batch, self._num_chunks)
        chunks = np.arange(num_rows) * self._num_chunks // num_rows
        for first in range(0, num_rows, self._global_batch):
            rows = np.full(self._global_batch, self._num_chunks)
            rows[: num_rows - first] = chunks[first : first + self._global_batch]
            yield self._sequences.cut(rows * self._sequences.seq_length)


class Windows:
    """Windows at random places of the stream, drawn with replacement (nanoGPT's convention)."""

    def __init__(self, sequences: Sequences, seed: int, global_batch: int):
        """Raises DataError when the stream is shorter than one window."""
        if len(sequences) <= sequences.seq_length:
            raise DataError(
                f"a split of {len(sequences)} tokens holds no window of config.data.seq_length + 1 = "
                f"{sequences.seq_length + 1}; give more text, shorten seq_length or set config.data.packing = documents"
            )
        self._sequences = sequences
        self._seed = seed
        self._global_batch = global_batch

    @property
    def batches_per_epoch(self) -> int:
        """Batches with as many targets as the stream has tokens."""
        return -(-len(self._sequences) // (self._sequences.seq_length * self._global_batch))

    def batch(self, step: int, rows: np.ndarray | None = None) -> Batch:
        """The training batch of a step, counted from 0, or some rows of it."""
        return self._draw((self._seed, step), rows)

    def recut(self, seq_length: int, global_batch: int) -> Windows:
        """The same tokens in batches of another size; raises as the constructor does."""
        return Windows(replace(self._sequences, seq_length=seq_length), self._seed, global_batch)

    def evaluation_batches(self, count: int) -> Iterator[Batch]:
        """`count` batches of windows that depend on nothing but the split and the sizes."""
        return (self._draw((_EVALUATION_SEED, step)) for step in range(count))

    def _draw(self, seed: tuple[int, int], rows: np.ndarray | None = None) -> Batch:
        # The raw bits are the same in every version of numpy; Generator.integers promises less. The remainder is not
        # exactly uniform, by less than one part in 2^24 for any stream that fits on a disk.
        bits = np.random.Philox(np.random.SeedSequence(seed)).random_raw(self._global_batch)
        num_starts = len(self._sequences) - self._sequences.seq_length
        starts = (bits % np.uint64(num_starts)).astype(np.int64)
        return self._sequences.cut(starts if rows is None else starts[rows])
