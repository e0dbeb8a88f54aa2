"""Small corpora for the tests of this folder."""

import itertools
import random
import threading
from collections.abc import Iterator
from pathlib import Path

from sem_jax.config import DataConfig
from sem_jax.data.corpus import Corpus
from sem_jax.data.sources import SOURCES, Source

WORDS = ["wave", "phase", "unitary", "spinor", "naïve", "Ψ", "graph", "token", "日本", "signal", "of", "the", "and\n"]


def make_texts(count: int, seed: int = 0) -> list[str]:
    """Distinct little documents of 20 to 60 words."""
    rng = random.Random(seed)
    return [f"{i}: " + " ".join(rng.choices(WORDS, k=rng.randint(20, 60))) for i in range(count)]


def write_texts(folder: Path, texts: list[str]) -> Path:
    """One .txt file a document, in order."""
    folder.mkdir(parents=True, exist_ok=True)
    for i, text in enumerate(texts):
        (folder / f"{i:05d}.txt").write_bytes(text.encode())
    return folder


def text_config(tmp_path: Path, texts: list[str], **changes) -> DataConfig:
    """Configuration of a corpus of `texts` with its cache under `tmp_path`."""
    folder = write_texts(tmp_path / "corpus", texts)
    fields = {"source": "text", "path": str(folder), "validation_fraction": 0.2, "seq_length": 16}
    return DataConfig(**(fields | {"cache_dir": str(tmp_path / "cache")} | changes))


def source_of(texts: list[str]) -> Source:
    """A source in memory."""
    return Source(lambda: itertools.chain(texts), "in memory")


class Watched:
    """A source in memory, of `config.data.source = "watched"`, that records how far it was read and can be disturbed.

    Attributes:
      texts: its documents.
      passes: documents that each pass has given so far.
      fail_at: the document, counted from 1, in whose place an OSError is raised.
      gate_at: the document that is given only when `gate` is set.
    """

    def __init__(self, monkeypatch, texts: list[str]):
        self.texts = texts
        self.passes: list[int] = []
        self.fail_at = self.gate_at = 0
        self.gate = threading.Event()
        monkeypatch.setitem(SOURCES, "watched", lambda config: Corpus(self._read, name=["watched"]))

    def _read(self) -> Iterator[str]:
        self.passes.append(0)
        number = len(self.passes) - 1
        for text in self.texts:
            if self.passes[number] + 1 == self.fail_at:
                raise OSError("the line is dead")
            if self.passes[number] + 1 == self.gate_at:
                assert self.gate.wait(30)
            self.passes[number] += 1
            yield text
