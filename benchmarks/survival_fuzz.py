"""Which damaged and hostile files get past a loader as anything but an error of one line?

    python benchmarks/survival_fuzz.py --count=20000

Every loader reads files that start as sound ones and are then flipped, cut, spliced, or edited where they are JSON,
archives or headers. An input counts as survived if it is read or refused by a `SemJaxError`; anything else, a file that
takes more than 20 s of processor time and code that a file has run are failures. Prints one line a loader, a line for
each failure with the file that is kept of it, and the peak of the memory.
"""

from __future__ import annotations

import io
import json
import logging
import os
import pickle
import random
import re
import resource
import shutil
import signal
import tempfile
import traceback
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import app, flags
from safetensors.numpy import save as save_safetensors

from sem_jax.config import DataConfig, build
from sem_jax.data.arrays import read_tokens
from sem_jax.data.cache import open_packed
from sem_jax.data.feed import Position
from sem_jax.data.seal import SEAL, sealed
from sem_jax.data.shards import ShardFolder
from sem_jax.data.sources import open_source
from sem_jax.data.splits import SPLITS
from sem_jax.data.tokenizers import ByteTokenizer, CharTokenizer, IdsTokenizer, load_tokenizer, train_tokenizer
from sem_jax.errors import SemJaxError
from sem_jax.interop import names
from sem_jax.interop.files import read_state_dict
from sem_jax.interop.schema import read_schema
from sem_jax.report import report
from sem_jax.reporting.page import page
from sem_jax.reporting.runs import read_runs
from sem_jax.training.workdir import open_workdir, prepare_workdir

_SECONDS = 20  # of processor time, after which an input counts as a hang
_TEXTS = ["the wave turns", "a graph of waves " * 20, "naïve Ψ 日本\n" * 5]
_NUMBERS = ["0", "-1", "1e999", "2147483648", "9223372036854775808", "1" + "0" * 400, "1" * 5000, "0.5", "1e308", "NaN"]
_VALUES: list[Any] = [None, True, -1, 0, 2**31, 2**63, 10**30, 10**400, 0.5, 1e308, float("nan"), "", "a\0", "\ud800"]
_VALUES += ["x" * 10_000, [], {}, [[]], [None] * 3, {"": 0}]


class Loader(NamedTuple):
    """A kind of file, sound ones of it, and what reads it."""

    seeds: list[bytes]
    read: Callable[[bytes], object]


class Marker:
    """Unpickled, it would leave a file behind: proof that a file has run code."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def mutated(content: bytes, rng: random.Random) -> bytes:
    """The content with one to four changes, made where the format lets them reach deep."""
    for _ in range(rng.randint(1, 4)):
        kinds = [_bytes]
        if re.search(rb"\d", content[:4096]):
            kinds.append(_digits)
        if content[:1] in b"{[" and content[:1]:
            kinds += [_json, _json]
        if content[:2] == b"PK":
            kinds += [_archive, _archive]
        content = rng.choice(kinds)(content, rng)
    return content


def _bytes(content: bytes, rng: random.Random) -> bytes:
    start = rng.randint(0, len(content))
    end = min(len(content), start + rng.choice([1, 4, 8, 64, 4096]))
    part = content[start:end]
    new = rng.choice(
        [
            bytes(byte ^ 1 << rng.randrange(8) for byte in part),
            b"",
            part * rng.choice([2, 50]),
            rng.randbytes(len(part)),
            b"\xff" * len(part),
            b"\0" * len(part),
            rng.choice([b"[", b'{"a":']) * 100_000,
        ]
    )
    return content[:start] if rng.random() < 0.1 else content[:start] + new + content[end:]


def _digits(content: bytes, rng: random.Random) -> bytes:
    match = rng.choice(list(re.finditer(rb"\d+", content[:4096])) or [None])
    if match is None:
        return content
    number = rng.choice(_NUMBERS).encode()
    if rng.random() < 0.5:  # of the same length, so that a header stays as long as it says
        number = (b"9" * len(match[0])) if rng.random() < 0.5 else number[: len(match[0])].rjust(len(match[0]), b"0")
    return content[: match.start()] + number + content[match.end() :]


def _json(content: bytes, rng: random.Random) -> bytes:
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        return _bytes(content, rng)
    places = list(_places(value))
    if not places:
        return _bytes(content, rng)
    parent, key = rng.choice(places)
    action = rng.random()
    if action < 0.15:
        del parent[key]
    elif action < 0.25 and isinstance(parent, dict):
        parent[f"{key}x"] = parent.pop(key)
    else:
        parent[key] = rng.choice([*_VALUES, parent[rng.choice(list(parent))] if isinstance(parent, dict) else None])
    if isinstance(value, dict) and SEAL in value and rng.random() < 0.8:
        value = sealed({name: each for name, each in value.items() if name != SEAL})  # by somebody who knows the seal
    return json.dumps(value).encode("utf-8", "surrogatepass")


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    left = [value]
    while left:
        parent = left.pop()
        items = parent.items() if isinstance(parent, dict) else enumerate(parent) if isinstance(parent, list) else ()
        for key, child in items:
            yield parent, key
            left.append(child)


def _archive(content: bytes, rng: random.Random) -> bytes:
    """One member of the archive changed, so that its checksum fits."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = {info.filename: archive.read(info) for info in archive.infolist()}
    except Exception:  # an earlier change has broken it
        return _bytes(content, rng)
    if not members:
        return _bytes(content, rng)
    name = rng.choice([*members, *(each for each in members if each.endswith("data.pkl"))])
    members[name] = rng.choice([_bytes, _digits])(members[name], rng)
    if rng.random() < 0.1:
        members[rng.choice(["../../../outside", "/outside.npy", "a\0b", name.upper()])] = members.pop(name)
    file = io.BytesIO()
    method = rng.choice([zipfile.ZIP_STORED, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
    with zipfile.ZipFile(file, "w", method) as archive:
        for member, data in members.items():
            archive.writestr(member, data)
    return file.getvalue()


def loaders(folder: Path) -> dict[str, Loader]:
    """All loaders, each with sound files and some that are made to do harm, below a folder."""
    return {
        "tokenizer.json": _tokenizers(folder),
        "config.json": _workdir_file(folder, "config.json", lambda workdir: open_workdir(workdir)),
        "metrics.jsonl": _workdir_file(
            folder, "metrics.jsonl", lambda workdir: (report(workdir), page(read_runs([workdir])))
        ),
        **_sources(folder),
        **_state_dicts(folder),
        "npy": _npy(folder),
        "metadata.json": _metadata(folder),
        "shard record": _shards(folder),
    }


def _file_loader(path: Path, seeds: list[bytes], read: Callable[[Path], object]) -> Loader:
    def load(content: bytes) -> object:
        path.write_bytes(content)
        return read(path)

    return Loader(seeds, load)


def _tokenizers(folder: Path) -> Loader:
    made = [train_tokenizer("bpe", _TEXTS, 300), CharTokenizer("abc日"), IdsTokenizer(40), ByteTokenizer()]

    def read(path: Path) -> object:
        tokenizer = load_tokenizer(path)
        return tokenizer.decode(np.arange(min(tokenizer.vocab_size, 5)))

    return _file_loader(folder / "tokenizer.json", [each.to_json().encode() for each in made], read)


class _Data(NamedTuple):
    tokenizer: CharTokenizer
    fingerprint: str


def _workdir_file(folder: Path, name: str, read: Callable[[Path], object]) -> Loader:
    workdir = folder / f"workdir of {name}"
    tokenizer = CharTokenizer("abcd")
    prepare_workdir(workdir, build({"model": {"vocab_size": tokenizer.vocab_size}}), _Data(tokenizer, "f"))  # type: ignore[arg-type]
    values = {"loss": 2.5, "nll": 2.5, "skipped": 0, "residual": 1e-7, "norm_drift": 1e-7, "tokens_per_s": 1e3}
    lines = [{"split": "train", "step": step, **values} for step in (1, 2)]
    lines += [{"split": "skip", "step": 3, "reason": "loss"}, {"split": "validation", "step": 4, "nll": 2.0}]
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return _file_loader(workdir / name, [(workdir / name).read_bytes()], lambda path: read(path.parent))


def _sources(folder: Path) -> dict[str, Loader]:
    import pyarrow
    import pyarrow.parquet

    records = [{"text": text, "score": float(number)} for number, text in enumerate(_TEXTS)]
    table = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), table)
    seeds = {
        "jsonl": "\n".join(map(json.dumps, records)).encode(),
        "parquet": table.getvalue(),
        "text": "\n".join(_TEXTS).encode(),
    }
    return {kind: _source(folder / f"corpus.{kind}", kind, seed) for kind, seed in seeds.items()}


def _source(path: Path, kind: str, seed: bytes) -> Loader:
    config = DataConfig(source=kind, path=str(path), score_field="" if kind == "text" else "score")
    return _file_loader(path, [seed], lambda _: list(open_source(config).read()))


def _state_dicts(folder: Path) -> dict[str, Loader]:
    import torch

    arrays = _state_dict()
    npz, objects, torches = io.BytesIO(), io.BytesIO(), []
    np.savez(npz, **arrays)  # type: ignore[arg-type]
    np.savez(objects, x=np.array([Marker(folder / "npz has run code")], object))
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    wrapped = {"model_state_dict": tensors, "step": 3, "odd": [torch.ones(2).to_sparse(), {"a": (1, 2)}]}
    for content in (tensors, wrapped, {"x": Marker(folder / "pt has run code")}):
        for new in (True, False):
            file = io.BytesIO()
            torch.save(content, file, _use_new_zipfile_serialization=new)
            torches.append(file.getvalue())
    torches.append(pickle.dumps({"x": Marker(folder / "pickle has run code")}))

    def read(path: Path) -> object:
        return read_schema(read_state_dict(path), str(path))

    seeds = {
        ".npz": [npz.getvalue(), objects.getvalue()],
        ".safetensors": [save_safetensors(arrays)],
        ".pt": torches,
    }
    return {suffix: _file_loader(folder / f"model{suffix}", each, read) for suffix, each in seeds.items()}


def _state_dict() -> dict[str, np.ndarray]:
    """The smallest state dict of the original, of its names and shapes."""
    sizes = {"V": 5, "D": 4, "M": 3, "P": 2, "G": 2, "N": 2, "b": 2, "K": 2, "E0.0": 2, "E0.1": 3, "E0.2": 3}
    arrays = {names.POSITIONAL_PHASE: np.arange(3, dtype=np.float32)[:, None] * np.float32(10000.0) ** -np.arange(4)}
    for entry in names.model_entries(1):
        shape = [size or 1 for size in names.shape(entry.dims, sizes)]
        for name in entry.names:
            if names.is_index_name(name):
                arrays[name] = np.array([[0, 0, 1], [1, 2, 3]])[:, : shape[1]].copy()
            else:
                arrays[name] = np.ones(shape, np.float32)
    return arrays


def _npy(folder: Path) -> Loader:
    seeds = []
    for array in (np.arange(12).reshape(3, 4), np.arange(6.0), np.array([{}], object)):
        file = io.BytesIO()
        np.save(file, array, allow_pickle=True)
        seeds.append(file.getvalue())
    return _file_loader(folder / "tokens.npy", seeds, lambda path: read_tokens(path, 20))


def _metadata(folder: Path) -> Loader:
    tokenizer, cache = ByteTokenizer(), folder / "cache"
    documents = [("train", _TEXTS[0]), ("validation", _TEXTS[1])]
    open_packed(cache, SPLITS, documents, tokenizer)  # type: ignore[arg-type]
    files = {path.name: path.read_bytes() for path in cache.iterdir()}

    def read(content: bytes) -> object:
        cache.mkdir(exist_ok=True)
        for name, sound in files.items():
            (cache / name).write_bytes(content if name == "metadata.json" else sound)
        streams = open_packed(cache, SPLITS, documents, tokenizer)  # type: ignore[arg-type]
        return [int(stream.tokens.astype(np.int64).sum()) for stream in streams.values()]

    return Loader([files["metadata.json"]], read)


def _shards(folder: Path) -> Loader:
    shards = ShardFolder(folder / "shards", ByteTokenizer())
    with shards.writing():
        shards.write(0, np.arange(100, dtype=np.uint16), True, Position(3, 0, "abc"))

    def read(path: Path) -> object:
        fresh = ShardFolder(path.parent, ByteTokenizer())
        return fresh.count(), int(fresh.tokens(0).sum())

    path = folder / "shards" / "000000.json"
    return _file_loader(path, [path.read_bytes()], read)


class Outcome(NamedTuple):
    """What came of the inputs of one loader."""

    read: int
    refused: int
    failures: list[str]


class _Hang(BaseException):
    pass


def survive(loader: Loader, count: int, seed: int) -> Outcome:
    """Lets a loader read its sound files, and `count` changed ones."""
    rng = random.Random(seed)
    results: Counter[str] = Counter()
    failures = []
    previous = signal.signal(signal.SIGPROF, _raise_hang)
    try:
        for number in range(count):
            seeds = loader.seeds
            content = seeds[number] if number < len(seeds) else mutated(rng.choice(seeds), rng)
            signal.setitimer(signal.ITIMER_PROF, _SECONDS)
            try:
                loader.read(content)
                results["read"] += 1
            except SemJaxError:
                results["refused"] += 1
            except BaseException as error:
                if isinstance(error, KeyboardInterrupt):
                    raise
                failures.append(f"{_kept(content)} at {_place(error)}: {type(error).__name__}: {error!s:.200}")
            finally:
                signal.setitimer(signal.ITIMER_PROF, 0)
    finally:
        signal.signal(signal.SIGPROF, previous)
    return Outcome(results["read"], results["refused"], failures)


def _kept(content: bytes) -> Path:
    """Where a file lies that is to be looked at."""
    path = Path(tempfile.gettempdir()) / f"sem-jax-fuzz-{zlib.crc32(content):08x}"
    path.write_bytes(content)
    return path


def _place(error: BaseException) -> str:
    """The line that raised it, or where it was interrupted."""
    frame = [each for each in traceback.extract_tb(error.__traceback__) if each.name != _raise_hang.__name__][-1]
    return f"{frame.filename}:{frame.lineno}"


def _raise_hang(*_: object) -> None:
    raise _Hang(f"more than {_SECONDS} s of processor time")


def main(argv: list[str]) -> None:
    """Prints the table."""
    del argv
    logging.disable(logging.CRITICAL)
    folder = Path(tempfile.mkdtemp())
    wanted = flags.FLAGS.loader
    all_loaders = {name: loader for name, loader in loaders(folder).items() if not wanted or name in wanted}
    before = _peak()
    each = -(-flags.FLAGS.count // len(all_loaders))
    print(f"{'loader':16} {'inputs':>7} {'read':>7} {'refused':>8} {'failed':>7}")
    failed = 0
    for name, loader in all_loaders.items():
        outcome = survive(loader, each, flags.FLAGS.seed)
        failed += len(outcome.failures)
        print(f"{name:16} {each:7} {outcome.read:7} {outcome.refused:8} {len(outcome.failures):7}", flush=True)
        for failure in outcome.failures[:5]:
            print(f"    {failure}")
    ran = [path.name for path in folder.rglob("*has run code")]
    print(f"{each * len(all_loaders)} inputs, {failed} failures, {len(ran)} files that ran code")
    print(f"memory at most {_peak():.2f} GiB, {before:.2f} GiB of it before the first input")
    shutil.rmtree(folder)
    if failed or ran:
        raise SystemExit(1)


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


if __name__ == "__main__":
    flags.DEFINE_integer("count", 20_000, "Inputs of all loaders together.", lower_bound=1)
    flags.DEFINE_multi_string("loader", [], "Loaders to try; without one, all.")
    flags.DEFINE_integer("seed", 0, "Of the changes.")
    app.run(main)
