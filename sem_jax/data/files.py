"""Files: finding them, naming their content by a hash, and writing them whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import glob
import hashlib
import json
import os
import re
import secrets
import shutil
import socket
import stat
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

from sem_jax.data.errors import DataError

_EDGE = 2**16  # bytes at either end of a file that stand for it


def find_files(spec: str, suffix: str) -> list[Path]:
    """The files that `spec` means, each once, in a fixed order.

    Args:
      spec: files, folders or globs, separated by commas; a folder stands for every `*suffix` below it.
      suffix: such as ".txt".

    Raises:
      DataError: a part of `spec` leads to no file.
    """
    files: list[Path] = []
    for part in filter(None, (part.strip() for part in spec.split(","))):
        path = os.path.expanduser(part)
        matches = [path] if os.path.exists(path) else sorted(glob.glob(path, recursive=True))
        found = [file for match in matches for file in _expand(Path(match), suffix)]
        if not found:
            what = f"holds no *{suffix} file" if os.path.isdir(path) else "matches no file"
            raise DataError(f"{part!r} {what}; set config.data.path to an existing file, folder or glob")
        files.extend(found)
    if not files:
        raise DataError(f"config.data.path = {spec!r} names no file; give a file, folder or glob")
    return list(dict.fromkeys(files))


def _expand(path: Path, suffix: str) -> list[Path]:
    if path.is_dir():
        return sorted(p for p in path.rglob(f"*{suffix}") if p.is_file())
    try:
        require_regular(path)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}; set config.data.path to a file or folder") from error
    return [path]


def require_regular(path: str | os.PathLike[str]) -> int:
    """The size of a file in bytes; a pipe or a device has none and could be read for ever.

    Raises:
      OSError: it is no regular file, or does not exist.
    """
    status = os.stat(path)
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "it is a pipe or a device, not a file", str(path))
    return status.st_size


def read_text(path: str | os.PathLike[str], most: int) -> str:
    """A UTF-8 file of a size that its kind may have: what is read is kept in memory.

    Args:
      path: of the file.
      most: its bytes at most.

    Raises:
      OSError: it cannot be read, is no regular file or is larger.
      ValueError: it is not UTF-8.
    """
    if (size := require_regular(path)) > most:
        raise OSError(errno.EFBIG, f"it has {size:_} bytes, where {most:_} are the most that make sense", str(path))
    with open(path, "rb") as file:
        return file.read(most).decode("utf-8")


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text.

    Raises:
      ValueError: it is not JSON, or nested so deeply that reading it would exhaust the stack.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def fingerprint(*parts: Any) -> str:
    """A short stable hexadecimal name of JSON-serialisable `parts`."""
    return hashlib.blake2b(json.dumps(parts, sort_keys=True).encode(), digest_size=16).hexdigest()


def content_digest(path: Path) -> str:
    """Hexadecimal hash of a file's bytes.

    Raises:
      DataError: the file cannot be read.
    """
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}; check that it is a file that you may read") from error


def content_digests(paths: Sequence[Path]) -> list[str]:
    """`content_digest` of each file, hashed side by side because hashing releases the interpreter lock."""
    with ThreadPoolExecutor() as pool:
        return list(pool.map(content_digest, paths))


def edge_digests(paths: Sequence[Path]) -> list[str]:
    """Names of files by their sizes, their first and their last bytes: as good as their content for files that grow or
    are written anew, and had without reading them."""
    with ThreadPoolExecutor() as pool:
        return list(pool.map(_edge_digest, paths))


def _edge_digest(path: Path) -> str:
    try:
        with open(path, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            digest = hashlib.blake2b(str(size).encode(), digest_size=16)
            for start in (0, max(size - _EDGE, 0)):
                file.seek(start)
                digest.update(file.read(_EDGE))
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}; check that it is a file that you may read") from error
    return digest.hexdigest()


def write_atomically(path: Path, text: str) -> None:
    """Writes a UTF-8 file that is there whole or not at all, whatever happens in between.

    Raises:
      DataError: the folder cannot be created or written to.
    """
    with open_atomically(path) as file:
        file.write(text.encode("utf-8"))


@contextlib.contextmanager
def folder_atomically(folder: Path) -> Iterator[Path]:
    """A folder to fill, which takes the place of `folder` at the end: whole, or not at all.

    What stood there goes only when the new one stands.

    Raises:
      DataError: it cannot be written.
    """
    partial = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    try:
        partial.mkdir(parents=True)
        yield partial
        _put(partial, folder)
    except OSError as error:
        raise DataError(f"cannot write {folder}: {error.strerror}; choose a place that can be written to") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _put(partial: Path, folder: Path) -> None:
    if not folder.exists() or not any(folder.iterdir()):
        os.replace(partial, folder)
        return
    old = partial.with_suffix(".old")
    os.replace(folder, old)
    try:
        os.replace(partial, folder)
    except OSError:
        os.replace(old, folder)
        raise
    shutil.rmtree(old, ignore_errors=True)


def require_writable(path: str | os.PathLike[str]) -> None:
    """To be asked before a computation whose result is to be written there; makes the folder where it is missing.

    Raises:
      DataError: `path` is a folder, or its folder cannot be made or written to.
    """
    folder = Path(path).parent
    try:
        if Path(path).is_dir():
            raise IsADirectoryError(errno.EISDIR, "it is a folder")
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise DataError(f"cannot write {path}: {error.strerror}; choose a place that can be written to") from error


@contextlib.contextmanager
def open_atomically(path: Path) -> Iterator[BinaryIO]:
    """A binary file to write that stands at `path` when the context is left, and not at all if that is by an exception.

    Raises:
      DataError: the folder cannot be created or written to.
    """
    temporary = path.with_name(f"{_attempts(path)}.{os.getpid()}.{secrets.token_hex(4)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _sweep(path)
        with open(temporary, "xb") as file:
            yield file
        os.replace(temporary, path)
    except OSError as error:
        raise DataError(
            f"cannot write {path}: {error.strerror}; make room, or choose a place that can be written to"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def _sweep(path: Path) -> None:
    """Removes what killed processes of this host have left of their attempts to write the same file."""
    attempt = re.compile(re.escape(_attempts(path)) + r"\.(\d+)\.\w+")
    for left in path.parent.iterdir():
        match = attempt.fullmatch(left.name)
        if match and not _lives(int(match[1])):
            left.unlink(missing_ok=True)


def _attempts(path: Path) -> str:
    return f".{path.name}.{socket.gethostname()}"


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it is another user's
        return True
    return True


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds an exclusive lock between processes; the operating system frees it even if the holder is killed.

    Args:
      path: the lock file, created when missing and left in place.

    Raises:
      DataError: the lock file cannot be created.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(path, "ab")  # noqa: SIM115 (closed by the with statement below, outside this try)
    except OSError as error:
        raise DataError(
            f"cannot write to the cache folder {path.parent}: {error.strerror}; "
            "set config.data.cache_dir or SEM_JAX_CACHE to a folder that can be written to"
        ) from error
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
