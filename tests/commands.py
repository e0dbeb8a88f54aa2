"""Commands in processes of their own, forked from one that has imported what they share, which takes longer than most.

Such a process is `python -m MODULE` in all that a command sees: its arguments, folder, variables, output, exit status.
Handlers of `atexit` do not run in it.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(["sem_jax.api", "sem_jax.cli"])


def run_module(
    module: str, *flags: object, folder: Path, variables: Mapping[str, str] | None = None, timeout: float = 300
) -> subprocess.CompletedProcess[str]:
    """What `subprocess.run` returns for `python -m MODULE FLAGS`, started in a folder."""
    arguments = [sys.executable, "-m", module, *map(str, flags)]
    with tempfile.TemporaryDirectory() as written:
        outputs = [os.path.join(written, name) for name in ("stdout", "stderr")]
        process = _SERVER.Process(target=_become, args=(arguments, str(folder), dict(variables or {}), outputs))
        process.start()
        process.join(timeout)
        if process.exitcode is None:
            process.kill()
            raise subprocess.TimeoutExpired(arguments, timeout)
        texts = [Path(path).read_text() for path in outputs]
    return subprocess.CompletedProcess(arguments, process.exitcode, *texts)


def _become(arguments: list[str], folder: str, variables: dict[str, str], outputs: list[str]) -> None:
    for descriptor, path in zip((1, 2), outputs, strict=True):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), descriptor)
    os.chdir(folder)
    os.environ.update(variables)
    sys.path.insert(0, folder)
    sys.orig_argv = arguments
    sys.argv = ["", *arguments[3:]]
    runpy.run_module(arguments[2], run_name="__main__", alter_sys=True)
