"""Training batches of a source that is read while the model trains."""

from __future__ import annotations

import copy
import weakref
from dataclasses import replace

import numpy as np

from sem_jax.config import DataConfig
from sem_jax.data.batches import Batch, Sequences
from sem_jax.data.errors import DataError
from sem_jax.data.permutation import permute
from sem_jax.data.producer import Producer
from sem_jax.data.shards import ShardFolder
from sem_jax.data.tokenizers import Tokenizer

_OPEN_SHARDS = 4  # kept mapped; a batch reads neighbours, so that more would not be used


class StreamedChunks:
    """Chunks of a stream, shard by shard, shuffled within each.

    Every shard is cut as `Chunks` cuts a split: each of its tokens but the first is a target once an epoch. The shards
    keep their order, so row number r of the run is found by arithmetic alone: with R chunks a shard and N in all,

        epoch, place = divmod(r, N);   shard, chunk = divmod(place, R);   chunk -> permutation (seed, epoch, shard)

    N is known only when the source has been read to its end; until then no row lies beyond it and epoch is 0. So a
    batch is a function of (seed, step) and of the source, whether its shards come from the cache or are made now.

    Args:
      shards: where the tokens lie.
      producer: makes the shards that do not lie there yet.
      config: sizes of shards and sequences.
      tokenizer: knows the token that starts a document.
      seed: selects the order.
      global_batch: sequences in a batch.
    """

    def __init__(
        self,
        shards: ShardFolder,
        producer: Producer,
        config: DataConfig,
        tokenizer: Tokenizer,
        seed: int,
        global_batch: int,
    ):
        self._shards = shards
        self._producer = producer
        self._config = config
        self._boundary_id = tokenizer.boundary_id
        self._seed = seed
        self._global_batch = global_batch
        self._open: dict[int, Sequences] = {}
        self._chunks_per_shard = self._num_chunks(config.shard_tokens)
        self._total: int | None = None  # chunks of an epoch
        self._owner: StreamedChunks | None = None  # of the finalizer, where it is not this one
        self._ender = weakref.finalize(self, producer.close)

    def batch(self, step: int, rows: np.ndarray | None = None) -> Batch:
        """The training batch of a step, counted from 0, or some rows of it; waits while its shards are not there.

        Raises:
          DataError: they cannot be made, or are damaged.
        """
        wanted = step * self._global_batch + (np.arange(self._global_batch) if rows is None else rows)
        epochs, places = divmod(wanted, self._chunks_in_epoch(int(wanted[-1])))
        shards, chunks = divmod(places, self._chunks_per_shard)
        parts = []
        for epoch, shard in np.unique(np.stack([epochs, shards]), axis=1).T.tolist():
            here = chunks[(epochs == epoch) & (shards == shard)]
            sequences = self._sequences(shard)
            places_in_shard = permute(here, self._num_chunks(len(sequences)), (self._seed, epoch, shard))
            parts.append(sequences.cut(places_in_shard * self._config.seq_length))
        return Batch(*map(np.concatenate, zip(*parts, strict=True)))

    def recut(self, seq_length: int, global_batch: int) -> StreamedChunks:
        """The same shards in batches of another size; they share the reading of the source."""
        other = copy.copy(self)
        other._owner = self
        other._config, other._global_batch = replace(self._config, seq_length=seq_length), global_batch
        other._open, other._total = {}, None
        other._chunks_per_shard = other._num_chunks(self._config.shard_tokens)
        return other

    def close(self) -> None:
        """Ends the reading of the source; a batch that waits for it fails."""
        self._ender()

    def _chunks_in_epoch(self, row: int) -> int:
        """Chunks of an epoch, or a number beyond `row` while the end of the source is not known to lie before it."""
        if self._total is None:
            shard = row // self._chunks_per_shard
            if self._producer.wait_for(shard) and not self._shards.record(shard).last:
                return row + 1
            self._total = self._count_chunks()
        return self._total

    def _count_chunks(self) -> int:
        count = self._shards.count()
        assert count is not None
        total = (count - 1) * self._chunks_per_shard + self._num_chunks(self._shards.record(count - 1).tokens)
        if not total:
            raise DataError("a stream of one token has nothing to predict; give more text")
        return total

    def _num_chunks(self, tokens: int) -> int:
        return -(-(tokens - 1) // self._config.seq_length)

    def _sequences(self, shard: int) -> Sequences:
        if shard not in self._open:
            self._producer.wait_for(shard)
            if len(self._open) == _OPEN_SHARDS:
                del self._open[next(iter(self._open))]
            config = self._config
            tokens = self._shards.tokens(shard)
            self._open[shard] = Sequences(tokens, config.seq_length, self._boundary_id, config.reset_at_boundary)
        return self._open[shard]
