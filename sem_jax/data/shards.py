"""Shards: the training tokens of a stream, cached in files of equal length.

<cache_dir>/tokens/<key>/shards/000000.bin    ids, uint16 or uint32
                               /000000.json   `ShardRecord`, written last: a shard is there when its record is
                               /000001.bin
                               ...
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sem_jax.data.cache import map_tokens
from sem_jax.data.errors import DataError
from sem_jax.data.feed import Position
from sem_jax.data.files import locked, open_atomically, parse_json, read_text, write_atomically
from sem_jax.data.seal import sealed, unsealed
from sem_jax.data.tokenizers import Tokenizer

_LARGEST_RECORD = 2**16  # bytes


@dataclass(frozen=True)
class ShardRecord:
    """What is known of a shard.

    Attributes:
      tokens: number of ids; all shards but the last have the same.
      max_id: the largest id.
      checksum: of the file.
      last: whether the source ends here.
      end: where in the source the next shard begins.
    """

    tokens: int
    max_id: int
    checksum: str
    last: bool
    end: Position


class ShardFolder:
    """The shards of one stream on disk, numbered from 0.

    A shard is a function of the source, so several processes may fill one folder: whoever holds `writing` makes the
    next shard, and the others find it there.
    """

    def __init__(self, folder: Path, tokenizer: Tokenizer):
        self._folder = folder
        self._tokenizer = tokenizer
        self._count: int | None = None

    def __contains__(self, index: int) -> bool:
        return self._record_path(index).exists()

    def record(self, index: int) -> ShardRecord:
        """The record of a shard that is there.

        Raises:
          DataError: it is damaged.
        """
        path = self._record_path(index)
        try:
            facts = unsealed(parse_json(read_text(path, _LARGEST_RECORD)))
            return ShardRecord(**(facts | {"end": Position(*facts["end"])}))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path} is damaged ({error!r}); {_cure(path)}") from error

    def tokens(self, index: int) -> np.ndarray:
        """The ids of a shard that is there, `[n]`, mapped from disk.

        Raises:
          DataError: they are not what was written.
        """
        facts = dataclasses.asdict(self.record(index))
        try:
            return map_tokens(self._token_path(index), facts, self._tokenizer)
        except (DataError, OSError, ValueError, TypeError) as error:
            raise DataError(
                f"shard {index} in {self._folder} is damaged: {error}; {_cure(self._record_path(index))}"
            ) from error

    def count(self) -> int | None:
        """Number of shards; None while the end of the source is not known."""
        if self._count is None:
            names = [path.stem for path in self._folder.glob("[0-9]*.json")]
            newest = max((int(name) for name in names if name.isdecimal()), default=None)
            if newest is not None and self.record(newest).last:
                self._count = newest + 1
        return self._count

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Holds the only right to write; what a killed process has left half-written is removed.

        Raises:
          DataError: the folder cannot be written to.
        """
        with locked(self._folder.with_suffix(".lock")):
            for leftover in self._folder.glob(".*"):
                leftover.unlink(missing_ok=True)
            yield

    def write(self, index: int, tokens: np.ndarray, last: bool, end: Position) -> None:
        """Adds a shard, whole or not at all. The caller is `writing`.

        Raises:
          DataError: the folder cannot be written to.
        """
        content = tokens.tobytes()
        checksum = hashlib.blake2b(content, digest_size=16).hexdigest()
        record = ShardRecord(len(tokens), int(tokens.max(initial=0)), checksum, last, end)
        with open_atomically(self._token_path(index)) as file:
            file.write(content)
        write_atomically(self._record_path(index), json.dumps(sealed(dataclasses.asdict(record))))

    def _record_path(self, index: int) -> Path:
        return self._folder / f"{index:06d}.json"

    def _token_path(self, index: int) -> Path:
        return self._folder / f"{index:06d}.bin"


def _cure(record: Path) -> str:
    return f"delete {record} and start the same command again, which makes this shard anew and goes on"
