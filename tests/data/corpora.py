"""Small corpora for the tests of this folder."""

import itertools
import random
from pathlib import Path

from sem_jax.config import DataConfig
from sem_jax.data.sources import Source

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
