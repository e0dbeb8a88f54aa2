"""The Python standard library as a corpus: about 10 MB of real text that every machine already has."""

from __future__ import annotations

import os
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from sem_jax.config import DataConfig
from sem_jax.data.corpus import Corpus
from sem_jax.data.errors import DataError

# Tests, installed packages, and what one distribution or another ships apart from the library itself: without them
# the text of the same Python version differs by a handful of files between distributions.
_LEFT_OUT = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}
_LEFT_OUT |= {"distutils", "ensurepip", "idlelib", "lib2to3", "tkinter", "turtledemo"}
_LEFT_OUT |= {"encodings"}  # character tables, a seventh of all bytes: a small model would learn little else
# Modules in which a distribution records or patches its own build.
_MACHINE_SPECIFIC = ("_sysconfigdata", "sitecustomize")
_TOPICS = Path("pydoc_data/topics.py")


def open_pystdlib(config: DataConfig) -> Corpus:
    """The standard library of the running interpreter; no field of the configuration is read."""
    del config
    return Corpus(library_documents, library_files())


def library_files() -> list[Path]:
    """The modules of the running interpreter's standard library, by relative path.

    Raises:
      DataError: the interpreter has no library on disk.
    """
    root = Path(sysconfig.get_path("stdlib"))
    names = []
    for folder, subfolders, files in os.walk(root):
        subfolders[:] = [name for name in subfolders if name not in _LEFT_OUT and not name.startswith("config-")]
        names += [Path(folder, name).relative_to(root) for name in files if _is_library(name)]
    if not names:
        raise DataError(f"no Python file in {root}; set config.data.source = text and config.data.path to a text")
    return [root / name for name in sorted(names)]


def _is_library(name: str) -> bool:
    return name.endswith(".py") and not name.startswith(_MACHINE_SPECIFIC)


def library_documents() -> Iterator[str]:
    """Each module of the library as one document, and each help topic of `pydoc` as another."""
    for path in library_files():
        if path.parts[-2:] == _TOPICS.parts:
            yield from _topics()
            continue
        try:
            text = path.read_bytes().decode("utf-8")
        except UnicodeDecodeError:
            continue  # the library keeps a few modules in old encodings on purpose
        if text:
            yield text


def _topics() -> Iterator[str]:
    from pydoc_data.topics import topics  # half a megabyte that only this source needs

    for name in sorted(topics):
        yield topics[name]
