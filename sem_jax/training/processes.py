"""The processes of a run: how they find each other, agree, and stop together.

A run on several hosts is the same program on each of them. Whatever one process decides alone, to stop or to save,
leaves the others waiting for it; so every decision is either the same everywhere by its nature, or made here.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from sem_jax.errors import SemJaxError

# Seconds that a process waits at its end for the others, and that one which failed waits for them to fail alike.
_SHUTDOWN_TIMEOUT = 60
_FAILURE_TIMEOUT = 10
# Seconds without a sign of life after which a process counts as lost. JAX sends signs from a thread of its own, which
# neither a long step nor compilation holds up; JAX's default of 100 would hold up whoever waits for lost files.
_HEARTBEAT_TIMEOUT = 60


class ProcessError(SemJaxError, RuntimeError):
    """Processes that do not find each other or do not run the same; the message names which, and the cure."""


def is_first() -> bool:
    """Whether this process writes the files of the run and speaks for it."""
    return jax.process_index() == 0


@contextlib.contextmanager
def joined(coordinator: str | None, num_processes: int | None, process_id: int | None, timeout: int) -> Iterator[None]:
    """Joins the processes of a run, and leaves them at the end. To be entered before JAX computes anything.

    TPU pods, Slurm and Open MPI say themselves who takes part. Elsewhere the arguments do, or JAX_COORDINATOR_ADDRESS,
    JAX_NUM_PROCESSES and JAX_PROCESS_ID. Without any of them the process is alone.

    A process that does not arrive in time, or is lost later, ends this one with exit status 1.

    Args:
      coordinator: "host:port" of process 0.
      num_processes: of the run.
      process_id: of this process, from 0.
      timeout: seconds to wait for the others.

    Raises:
      ProcessError: the arguments are incomplete or wrong.
    """
    if not _join(_arguments(coordinator, num_processes, process_id), timeout):
        yield
        return
    try:
        yield
    except SemJaxError as error:
        # Where all fail alike they part here. A process that failed alone ends, for the others wait for its numbers.
        with _ending_after(_FAILURE_TIMEOUT, str(error)):
            try:
                jax.distributed.shutdown()
            except jax.errors.JaxRuntimeError:  # the others are gone
                _leave(str(error))
        raise
    except BaseException as error:
        # At its exit JAX would wait for the others, which wait for this process or are gone.
        if not isinstance(error, jax.errors.JaxRuntimeError):
            traceback.print_exception(error)
        reason = " ".join(str(error).split())
        _leave(
            f"process {jax.process_index()} lost the others or failed itself ({type(error).__name__}: {reason:.300}); "
            "start all processes again, and the run goes on from its newest checkpoint"
        )
    jax.distributed.shutdown()


def _join(arguments: dict[str, Any] | None, timeout: int) -> bool:
    """Joins the other processes; False where there is no sign of any."""
    launched = any(int(os.environ.get(name, 1)) > 1 for name in ("SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE"))
    perhaps_a_pod = importlib.util.find_spec("libtpu") is not None
    if arguments is None and not launched and not perhaps_a_pod:
        return False
    try:
        # JAX would abort with a dump of the process; this comes before it.
        with _ending_after(timeout, _too_late(arguments, timeout)):
            jax.distributed.initialize(
                **(arguments or {}),
                initialization_timeout=timeout + 60,
                heartbeat_timeout_seconds=_HEARTBEAT_TIMEOUT,
                shutdown_timeout_seconds=_SHUTDOWN_TIMEOUT,
            )
    except (OSError, RuntimeError, TypeError, ValueError) as error:
        if arguments is None and not launched:
            return False  # the library is there, but no TPU that knows of others
        raise ProcessError(f"the processes of the run cannot be joined: {error}") from error
    return True


@contextlib.contextmanager
def _ending_after(seconds: float, message: str) -> Iterator[None]:
    """Ends the process with the message where what is done inside takes longer."""
    too_late = threading.Timer(seconds, _leave, [message])
    too_late.daemon = True
    too_late.start()
    try:
        yield
    finally:
        too_late.cancel()


def _leave(message: str) -> None:
    """Ends the process without the handlers that wait for other processes."""
    print(f"error: {message}", file=sys.stderr, flush=True)
    sys.stdout.flush()
    os._exit(1)


def _too_late(arguments: dict[str, Any] | None, timeout: int) -> str:
    who, where = "this process", ""
    if arguments:
        who = f"process {arguments['process_id']} of {arguments['num_processes']}"
        where = f" at {arguments['coordinator_address']}"
    return (
        f"{who} waited {timeout} s{where} for the others. Each process that arrived says so: start those that do not, "
        "check that they reach that address and port, or raise --join_timeout"
    )


def _arguments(coordinator: str | None, num_processes: int | None, process_id: int | None) -> dict[str, Any] | None:
    given = {
        "coordinator_address": coordinator or os.environ.get("JAX_COORDINATOR_ADDRESS"),
        "num_processes": _number("JAX_NUM_PROCESSES", num_processes),
        "process_id": _number("JAX_PROCESS_ID", process_id),
    }
    missing = [name for name, value in given.items() if value is None]
    if len(missing) == len(given):
        return None
    if missing:
        raise ProcessError(
            "several processes need --coordinator=HOST:PORT, --num_processes and --process_id; "
            f"{', '.join(missing)} is missing"
        )
    return given


def _number(variable: str, given: int | None) -> int | None:
    text = os.environ.get(variable)
    if given is not None or text is None:
        return given
    if not text.isdecimal():
        raise ProcessError(f"{variable} = {text!r} must be a whole number")
    return int(text)


def gather(value: Any) -> list[Any]:
    """What each process passes, in the order of the processes; `value` is anything that JSON holds."""
    if jax.process_count() == 1:
        return [value]
    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    longest = int(np.max(multihost_utils.process_allgather(np.int32(len(text)))))
    padded = multihost_utils.process_allgather(np.pad(text, (0, longest - len(text)), constant_values=ord(" ")))
    return [json.loads(bytes(each).decode()) for each in padded]


@contextlib.contextmanager
def all_or_none() -> Iterator[None]:
    """What is done inside succeeds on all processes, or ends all of them.

    Raises:
      ProcessError: another process failed; that one raises its own error.
    """
    failure: Exception | None = None
    try:
        yield
    except Exception as error:
        failure = error
    failed = [process for process, said in enumerate(gather(failure and str(failure))) if said is not None]
    if failure is not None:
        raise failure
    if failed:
        raise ProcessError(f"process {failed[0]} could not start; its own message says why")


def require_same(values: Mapping[str, Any]) -> None:
    """Compares what must be equal on all processes: code, libraries, and `values` by name. One alone agrees at once.

    Raises:
      ProcessError: on all processes alike, naming what differs, on which process.
    """
    if jax.process_count() == 1:
        return
    ours = {"code of sem_jax": _code_digest(), "version of jax": jax.__version__, **values}
    digests = {name: hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16] for name, value in ours.items()}
    first, *others = gather(digests)
    for process, theirs in enumerate(others, start=1):
        differing = [name for name in first | theirs if first.get(name) != theirs.get(name)]
        if differing:
            raise ProcessError(
                f"process {process} differs from process 0 in {', '.join(differing)}; start all processes with the "
                "same code and configuration"
            )


def _code_digest() -> str:
    folder = Path(__file__).parents[1]
    files = sorted(folder.rglob("*.py"))
    content = b"".join(str(file.relative_to(folder)).encode() + file.read_bytes() for file in files)
    return hashlib.sha256(content).hexdigest()


@contextlib.contextmanager
def interruptible(
    echo: Callable[[str], None], unread: Callable[[], bool] = lambda: False
) -> Iterator[Callable[[int], bool]]:
    """Turns the first Ctrl-C, SIGTERM or lost terminal into a request to stop after the step; a second acts at once.

    Several processes agree on the step through JAX, which listens for SIGTERM itself: Ctrl-C becomes one.

    Args:
      echo: prints a line.
      unread: whether nobody reads what is printed any more; this is a request to stop, too.

    Yields:
      A function that every process asks after each step, with its number, whether it was the last.
    """
    alone = jax.process_count() == 1
    asked = False

    def ask(signum: int, frame: Any) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True
        with contextlib.suppress(RuntimeError):  # the signal came within a print, which cannot be entered twice
            echo("\nstopping after this step; once more to stop at once")
        if not alone:
            os.kill(os.getpid(), signal.SIGTERM)

    def stops(step: int) -> bool:
        if unread() and not asked:
            ask(signal.SIGHUP, None)
        return asked if alone else multihost_utils.reached_preemption_sync_point(step)

    try:
        signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) if alone else (signal.SIGINT, signal.SIGHUP)
        previous = {number: signal.signal(number, ask) for number in signals}
    except ValueError:  # not in the main thread, where signals do not arrive anyway
        previous = {}
    try:
        yield stops
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
