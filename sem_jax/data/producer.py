"""The thread that reads a source while a model trains, and writes its shards."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator

from sem_jax.config import DataConfig
from sem_jax.data.errors import DataError
from sem_jax.data.feed import Feed
from sem_jax.data.packing import BATCH_CHARS, Packer
from sem_jax.data.shards import ShardFolder

_log = logging.getLogger(__name__)
_LEAD = 8  # shards that are made ahead of the one that training reads: what bounds the disk, too
_LOOK = 1.0  # seconds after which a waiting batch looks itself whether another process has made the shard
_PATIENCE = 30.0  # seconds between two messages that training waits


class Producer:
    """Makes the shards that training asks for, and a few more.

    The thread starts when a shard is asked for that is not there, and reads no further than `_LEAD` shards ahead. An
    error in it reaches whoever waits for a shard that could not be made.

    Args:
      shards: where to write.
      documents: starts a pass over all documents of the source.
      pack: turns documents into ids.
      config: the source's name, the split and the length of a shard.
    """

    def __init__(self, shards: ShardFolder, documents: Callable[[], Iterator[str]], pack: Packer, config: DataConfig):
        self._shards = shards
        self._documents = documents
        self._pack = pack
        self._config = config
        self._thread: threading.Thread | None = None
        self._changed = threading.Condition()  # guards what follows
        self._wanted = 0
        self._error: DataError | None = None
        self._closed = False

    def wait_for(self, shard: int) -> bool:
        """Waits until a shard is there; False if the source ends before it.

        Raises:
          DataError: the shard cannot be made, and why; or the producer was closed.
        """
        with self._changed:
            self._wanted = max(self._wanted, shard)
            self._changed.notify_all()
            self._start(shard)
            patient_until = time.monotonic() + _PATIENCE
            while shard not in self._shards:
                count = self._shards.count()
                if count is not None and shard >= count:
                    return False
                if self._error is not None:
                    raise self._error
                if self._closed:
                    raise DataError(f"shard {shard} is not there and the stream was closed")
                self._changed.wait(_LOOK)
                if time.monotonic() > patient_until:
                    _log.warning("training waits for shard %d of %s", shard, self._name())
                    patient_until += _PATIENCE
        return True

    def close(self) -> None:
        """Ends the thread; a shard half made is dropped."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(timeout=10)  # no longer: it may hang in a read from the network, and is a daemon

    def _start(self, shard: int) -> None:
        """Starts the thread if a shard or one soon after it is to be made. The caller holds the lock."""
        if self._closed or self._error is not None or (self._thread is not None and self._thread.is_alive()):
            return
        absent = [soon for soon in range(shard, shard + _LEAD + 1) if soon not in self._shards]
        count = self._shards.count() if absent else None
        if absent and (count is None or absent[0] < count):
            self._thread = threading.Thread(target=self._run, name="producer", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        error = None
        try:
            self._produce()
        except _Closed:
            pass
        except BaseException as reason:  # whatever it is, training must not wait for ever
            what = str(reason) if isinstance(reason, DataError) else f"reading {self._name()} failed: {reason!r}"
            error = DataError(
                f"the stream broke off: {what}. The shards made so far are kept: unless a local file has to change, "
                "the same command goes on from there"
            )
            error.__cause__ = reason
        with self._changed:
            self._error = error
            self._changed.notify_all()

    def _produce(self) -> None:
        size = self._config.shard_tokens
        documents = self._until_closed(self._documents())
        feed = Feed(documents, self._config.validation_fraction, self._pack, min(size, BATCH_CHARS))
        shard = 0
        while self._is_wanted(shard):
            if shard not in self._shards:
                with self._shards.writing():
                    if shard not in self._shards:  # still, now that no other process writes
                        self._make(shard, feed)
            with self._changed:
                self._changed.notify_all()
            if self._shards.record(shard).last:
                return
            shard += 1

    def _make(self, shard: int, feed: Feed) -> None:
        if shard:
            feed.seek(self._shards.record(shard - 1).end)
        tokens = feed.take(self._config.shard_tokens)
        last = feed.at_end()
        if not len(tokens):
            raise DataError("its documents hold no token")
        self._shards.write(shard, tokens, last, feed.position)
        _log.info("shard %d: %d tokens, %d documents so far", shard, len(tokens), feed.position.documents)

    def _is_wanted(self, shard: int) -> bool:
        """Waits until training is near a shard."""
        with self._changed:
            while shard > self._wanted + _LEAD and not self._closed:
                self._changed.wait()
            return not self._closed

    def _until_closed(self, documents: Iterator[str]) -> Iterator[str]:
        for text in documents:
            if self._closed:
                raise _Closed
            yield text

    def _name(self) -> str:
        return f"config.data.source = {self._config.source}, config.data.path = {self._config.path!r}"


class _Closed(Exception):
    """The producer was closed while it read."""
