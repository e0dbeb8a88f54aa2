"""Which damage to a file of a checkpoint, a workdir or the token cache goes unnoticed?

    python benchmarks/survival_damage.py --flips=40

Each file is truncated, emptied, removed, and has single bits flipped, one damage at a time. A damage counts as
detected if a reader refuses it by a `SemJaxError` that names the place or warns of what is gone, as mended if it is
rebuilt with a warning, as harmless if every reader sees what it saw before, and as silent otherwise. Prints one line a
file, and the sums.
"""

from __future__ import annotations

import hashlib
import logging
import random
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import app, flags

from sem_jax.config import Config, build, with_vocabulary
from sem_jax.data import open_dataset
from sem_jax.errors import SemJaxError
from sem_jax.report import write_report
from sem_jax.training.checkpoint import Checkpointer
from sem_jax.training.metrics import MetricsWriter, gap_warning, read_metrics
from sem_jax.training.state import init_state
from sem_jax.training.workdir import checkpoint_folder, prepare_workdir, restore_run

_TEXT = "".join(f"the wave {i} turns {i * i % 97} times\n\n" for i in range(400))
_STEPS = 20
_LOG_EVERY = 10
OUTCOMES = ("detected", "mended", "harmless", "silent")


class Place(NamedTuple):
    """A folder whose files are damaged, and what its readers see in it."""

    folder: Path
    see: Callable[[], object]


class Warnings(logging.Handler):
    """Keeps the warnings of sem_jax."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keeps one."""
        self.texts.append(record.getMessage())


def make_places(folder: Path) -> list[Place]:
    """A workdir and a token cache, as a short run leaves them."""
    (folder / "text.txt").write_text(_TEXT, encoding="utf-8")
    config = _config(folder)
    dataset = open_dataset(config.data, 0, config.training.global_batch)
    config = with_vocabulary(config, dataset.tokenizer.vocab_size)
    workdir = folder / "run"
    prepare_workdir(workdir, config, dataset)
    with Checkpointer(checkpoint_folder(workdir), keep=1) as checkpointer, MetricsWriter(workdir) as metrics:
        checkpointer.save(_STEPS, init_state(config))
        for step in range(_LOG_EVERY, _STEPS + 1, _LOG_EVERY):
            metrics.write("train", step, loss=1.0 / step, residual=0.0, norm_drift=0.0, tokens_per_s=9.5, skipped=0)
            metrics.write("validation", step, nll=2.0 / step, bits_per_byte=1.0)
    write_report(workdir)
    (workdir / ".lock").touch()
    return [Place(workdir, lambda: _see_run(workdir)), Place(folder / "cache", lambda: _see_data(config))]


def _config(folder: Path) -> Config:
    return build(
        {
            "model": {"hidden_dim": 16, "num_layers": 1, "propagator": {"laplacian_sparsity": 3}},
            "data": {
                "source": "text",
                "path": str(folder / "text.txt"),
                "cache_dir": str(folder / "cache"),
                "tokenizer": "bpe",
                "bpe_vocab_size": 300,
                "seq_length": 16,
                "split": "tail",
            },
            "training": {"global_batch": 4, "micro_batch": 4},
        }
    )


def _see_run(workdir: Path) -> object:
    run = restore_run(workdir)
    leaves = [(leaf.dtype, np.asarray(leaf).tobytes()) for leaf in jax.tree.leaves(run.state)]
    named = {"split", "step", "loss", "nll", "bits_per_byte"}
    lines = [{name: line[name] for name in named & line.keys()} for line in read_metrics(workdir / "metrics.jsonl")]
    if gap := gap_warning(max((line["step"] for line in lines), default=0), run.step, _LOG_EVERY):
        logging.getLogger("sem_jax").warning(gap)
    return run.config, run.tokenizer.fingerprint, run.step, leaves, lines


def _see_data(config: Config) -> object:
    dataset = open_dataset(config.data, 0, config.training.global_batch)
    batches = [dataset.train.batch(number).tokens.tobytes() for number in range(20)]
    return dataset.tokenizer.fingerprint, dataset.train_tokens, dataset.bytes_per_token, batches


def damages(content: bytes, flips: int, rng: random.Random) -> Iterator[tuple[str, bytes | None]]:
    """Names of damages and what they make of a file; None: it is gone."""
    yield "removed", None
    if content:
        yield "emptied", b""
        yield "truncated", content[: len(content) // 2]
        yield "truncated", content[:-1]
    for position in rng.sample(range(8 * len(content)), min(flips, 8 * len(content))):
        changed = bytearray(content)
        changed[position // 8] ^= 1 << position % 8
        yield "flipped", bytes(changed)


def try_all(place: Place, flips: int, without: str = "", seed: int = 0) -> dict[str, Counter[str]]:
    """How the damages to each file end, by the path of the file in its folder.

    Args:
      place: is whole again at the end.
      flips: bits of a file at most that are flipped, one at a time.
      without: a folder that is passed over.
      seed: selects them.
    """
    rng, warnings = random.Random(seed), Warnings()
    logger = logging.getLogger("sem_jax")
    logger.addHandler(warnings)
    logger.propagate, before = False, logger.propagate
    kept = place.folder.with_name(f"{place.folder.name}.kept")
    shutil.copytree(place.folder, kept)
    expected, found = _digest(place.see()), {}
    try:
        for path in sorted(path for path in kept.rglob("*") if path.is_file()):
            name = path.relative_to(kept)
            if name.parts[0] == without:
                continue
            counts: Counter[str] = Counter()
            for kind, content in damages(path.read_bytes(), flips, rng):
                damaged = place.folder / name
                damaged.unlink() if content is None else damaged.write_bytes(content)
                warnings.texts.clear()
                outcome = _outcome(place, expected, warnings)
                counts[outcome] += 1
                if outcome == "silent":
                    counts[f"silent: {kind}"] += 1
                shutil.rmtree(place.folder)
                shutil.copytree(kept, place.folder)
            found[str(name)] = counts
    finally:
        logger.removeHandler(warnings)
        logger.propagate = before
        shutil.rmtree(kept)
    return found


def _outcome(place: Place, expected: str, warnings: Warnings) -> str:
    try:
        seen = _digest(place.see())
    except SemJaxError as error:
        return "detected" if str(place.folder) in str(error) else "silent"
    if warnings.texts:
        return "mended" if seen == expected else "detected"
    return "harmless" if seen == expected else "silent"


def _digest(value: Any) -> str:
    return hashlib.sha256(repr(value).encode()).hexdigest()


_FLIPS = flags.DEFINE_integer("flips", 40, "Bits that are flipped in each file.", lower_bound=0)


def main(argv: list[str]) -> None:
    """Runs the command line."""
    del argv
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    total: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        for place in make_places(Path(folder)):
            for name, counts in try_all(place, _FLIPS.value).items():
                print(f"{name:70s} {dict(counts)}", flush=True)
                total += counts
    tried = sum(total[outcome] for outcome in OUTCOMES)
    print(f"{tried} damages: " + ", ".join(f"{total[outcome]} {outcome}" for outcome in OUTCOMES))


if __name__ == "__main__":
    app.run(main)
