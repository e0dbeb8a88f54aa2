"""What all commands share: an expected error is one line and exit status 1, not a traceback."""

from __future__ import annotations

import contextlib
import errno
import functools
import io
import logging
import os
import re
import shlex
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO

import jax
from absl import app, flags
from ml_collections import config_flags

from sem_jax.data.files import require_regular
from sem_jax.errors import SemJaxError

_INTERRUPTED = 128 + signal.SIGINT  # as a shell reports it
_MAY_BE_EMPTY = ("prompt",)
_MODULE = "config_config"  # the name under which ml_collections runs the file of --config
flags.disclaim_key_flags()  # what is defined here belongs to the command that asks for it, and stands in its --help


def reporting_errors(main: Callable[[list[str]], Any]) -> Callable[[list[str]], Any]:
    """Wraps the main function of a command, which takes flags only."""

    @functools.wraps(main)
    def run(argv: list[str]) -> Any:
        if len(argv) > 1:
            raise app.UsageError(f"unknown argument {argv[1]!r}")
        _prepare_output()
        enable_compilation_cache()
        logging.getLogger("jax").setLevel(logging.WARNING)  # it reports every accelerator that is absent
        try:
            result = main(argv)
            sys.stdout.flush()  # a full disk shows here, not in a traceback at the end of the process
            return result
        except SemJaxError as error:
            reason = str(error)
        except KeyboardInterrupt:
            print("error: stopped at once; what was saved last is kept", file=sys.stderr)
            sys.exit(_INTERRUPTED)
        except MemoryError as error:
            reason = f"out of memory {error}; make the batch, the sequence or the model smaller"
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            reason = f"out of memory: {error}; lower config.training.micro_batch, or make the model smaller"
        except OSError as error:
            reason = explain_os_error(error)
            if error.filename is None:  # it may be standard output that cannot be written
                sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (for the rest of the process)
        print("error:", reason, file=sys.stderr)
        sys.exit(1)

    return run


class LastingOutput(io.TextIOBase):
    """Standard output for what must not break off with it: a closed pipe or a full disk is one warning, no more."""

    def __init__(self, stream: TextIO):
        self._stream = stream
        self._before = stream
        self.lost: OSError | None = None  # why nothing is written any more

    def __enter__(self) -> LastingOutput:
        self._before, sys.stdout = sys.stdout, self
        return self

    def __exit__(self, *_: object) -> None:
        sys.stdout = self._before

    def unread(self) -> bool:
        """Whether whoever read it has ended."""
        return self.lost is not None and self.lost.errno == errno.EPIPE

    def write(self, text: str) -> int:
        """As of any stream, but that nothing is raised."""
        self._try(lambda: self._stream.write(text))
        return len(text)

    def flush(self) -> None:
        """As of any stream, but that nothing is raised."""
        self._try(self._stream.flush)

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """Of the stream beneath: the bar chooses its characters by it."""
        return self._stream.encoding

    def isatty(self) -> bool:
        """Whether a person reads along."""
        return self.lost is None and self._stream.isatty()

    def fileno(self) -> int:
        """Of the stream beneath."""
        return self._stream.fileno()

    def _try(self, action: Callable[[], Any]) -> None:
        if self.lost is not None:
            return
        try:
            action()
        except OSError as error:
            self.lost = error
            # What is left in the buffer must not fail once more at the end of the process.
            with open(os.devnull, "wb") as nowhere:
                os.dup2(nowhere.fileno(), self._stream.fileno())
            with contextlib.suppress(OSError):  # the terminal may be gone altogether
                then = "the run stops after this step" if self.unread() else "the run goes on without it"
                print(
                    f"warning: the output: {error.strerror}; {then}, and its workdir holds all that it tells",
                    file=sys.stderr,
                )


def _prepare_output() -> None:
    """Lets every text be printed, whatever the terminal knows, and ends a command whose output is closed."""
    if sys.stdout is None:
        print("error: standard output is closed; send it to a file, or to /dev/null", file=sys.stderr)
        sys.exit(1)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    sys.unraisablehook = _without_closed_loops


def _without_closed_loops(unraisable: Any) -> None:
    """Passes over what orbax leaves behind when a run ends in an error: coroutines of an event loop that is gone."""
    if "Event loop is closed" not in str(unraisable.exc_value):
        sys.__unraisablehook__(unraisable)


def explain_os_error(error: OSError) -> str:
    """What the system refused, where, and the cure, in one line.

    >>> explain_os_error(OSError(28, "No space left on device", "runs/a/metrics.jsonl"))
    'runs/a/metrics.jsonl: No space left on device; free some space, or choose another place'
    """
    where = "the output" if error.filename is None else error.filename
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        cure = "free some space, or choose another place"
    elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        cure = "choose a place that you may read and write, or change its permissions"
    elif error.errno == errno.EPIPE:
        cure = "whoever read it has ended"
    else:
        cure = "check the path, and that nothing else is using it"
    return " ".join(f"{where}: {error.strerror or error}; {cure}".split())


def this_command() -> str:
    """The command line of this process, as it works in a fresh shell that has not activated the environment."""
    arguments = sys.orig_argv[1:]
    script = bool(arguments) and Path(arguments[0]).name == "sem-jax"
    return shlex.join(arguments if script else [sys.executable, *arguments])


def parse_flags(argv: list[str]) -> list[str]:
    """For `absl.app.run(flags_parser=...)`: a wrong flag or config file is an error of one line, too."""
    with one_line_errors():
        for argument in argv:
            if argument.startswith("--config="):
                _require_no_pipe(argument.removeprefix("--config="))
        arguments = flags.FLAGS(argv)
        _refuse_empty_values()
        if "config" in flags.FLAGS:
            getattr(flags.FLAGS["config"].value, "keys", None)  # a file that could not be loaded raises only now
        return arguments


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """Ends the process with one line if flags cannot be read."""
    try:
        yield
    except Exception as error:  # a config file is a program, which may raise anything
        print("error:", " ".join(_explain(error).split()), file=sys.stderr)
        sys.exit(1)


def _require_no_pipe(path: str) -> None:
    if os.path.exists(path):
        require_regular(path)


def _refuse_empty_values() -> None:
    """An empty folder or file would be the current folder, or nothing; an empty prompt or field means something."""
    for name in flags.FLAGS:
        flag = flags.FLAGS[name]
        if flag.present and flag.value == "" and name not in _MAY_BE_EMPTY and "." not in name:
            raise flags.IllegalFlagValueError(f"--{name} is empty; give it a value, or leave it out")


def _explain(error: Exception) -> str:
    """What is wrong with the flags, or where in a config file what is wrong."""
    cause: BaseException | None = error
    while cause is not None:  # flags wrap what a config file raises
        calls = traceback.walk_tb(cause.__traceback__)
        places = [(frame.f_code.co_filename, line) for frame, line in calls if frame.f_globals["__name__"] == _MODULE]
        if places and isinstance(cause, SemJaxError):
            return str(cause)
        if places:
            file, line = places[-1]
            return f"correct line {line} of {file}: {type(cause).__name__}: {_text(cause)}"
        cause = cause.__cause__ or cause.__context__
    if isinstance(error, OSError) and not isinstance(error, FileNotFoundError):
        return explain_os_error(error)
    if isinstance(error, flags.Error):
        first, *others = str(error).strip().splitlines()
        return " ".join([first, *others[-1:]]) + "; see --help"  # in between stands a traceback
    if isinstance(error, KeyError) or (error.args and isinstance(error.args[0], KeyError)):
        return f"--config has no such field: {_text(error)}"
    return "--config: " + _text(error).replace(f"module '{_MODULE}'", "the file")


def _text(error: BaseException) -> str:
    """The message of an error, without the quotes of a KeyError and without a `ConfigDict` in full."""
    text: Any = error
    while isinstance(text, KeyError | AttributeError) and text.args:
        text = text.args[0]
    return re.sub(r' Other fields present: "\{.*\}"', "", str(text), flags=re.DOTALL)


class _WholeNumber(flags.IntegerParser):
    """Reads 1e3 as 1000."""

    def convert(self, argument: Any) -> int:
        """The number that a text or a number stands for."""
        with contextlib.suppress(ValueError):
            return super().convert(argument)
        with contextlib.suppress(ValueError):
            if float(argument).is_integer():
                return int(float(argument))
        raise ValueError("this is not a whole number, such as 1000 or 1e3")


config_flags.register_flag_parser_for_type(int, _WholeNumber())


class _ChoiceParser(flags.ArgumentParser):
    """Reads which checkpoint is meant."""

    syntactic_help = "latest, best or a step"

    def parse(self, argument: Any) -> int | str | None:
        """A step, "best", or None for the newest."""
        if argument in ("latest", "best"):
            return None if argument == "latest" else "best"
        if not str(argument).isdecimal():
            raise ValueError("give latest, best or the number of a step")
        return int(argument)


def checkpoint_flags() -> tuple[flags.FlagHolder, flags.FlagHolder[bool]]:
    """--checkpoint and --fallback of the commands that read a run."""
    meaning = "Which one to use: latest, best (of the lowest validation loss) or a step."
    fallback = "Where that checkpoint is damaged, use the newest older one that is intact."
    choice = flags.DEFINE(_ChoiceParser(), "checkpoint", "latest", meaning)
    return choice, flags.DEFINE_bool("fallback", False, fallback)


def enable_compilation_cache() -> None:
    """Keeps compiled programs between runs, beside the token cache; JAX_COMPILATION_CACHE_DIR chooses another place."""
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        cache = Path(os.environ.get("SEM_JAX_CACHE") or Path.home() / ".cache" / "sem_jax")
        jax.config.update("jax_compilation_cache_dir", str(cache / "xla"))
