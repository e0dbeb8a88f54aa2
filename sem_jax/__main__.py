"""The console script: `sem-jax COMMAND` is short for `python -m sem_jax.COMMAND`."""

from __future__ import annotations

import difflib
import os
import runpy
import sys

COMMANDS = {
    "train": "train a model, or go on with a run",
    "generate": "continue a text",
    "evaluate": "measure a model on held-out text, or on given tokens",
    "diagnose": "examine a model part by part and name suspects",
    "report": "what a run has achieved",
    "play": "a local page: write with a model, or two, and see the wave",
    "export": "a model as a folder to share, or to upload",
    "convert": "a state dict of the PyTorch original to a run, or back",
    "tokenizer": "train a tokenizer and save it",
}


def usage() -> str:
    """The commands, one line each."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {meaning}" for name, meaning in COMMANDS.items()]
    return "\n".join(["usage: sem-jax COMMAND [--flag=value ...]", "", *lines, "", "sem-jax COMMAND --help: its flags"])


def main() -> None:
    """Runs a command as its own program: the flags of one are unknown to the others, and only one is imported."""
    command, *arguments = sys.argv[1:] or ["--help"]
    if command in ("--help", "-h", "help"):
        try:
            print(usage(), flush=True)
        except OSError as error:
            print(f"error: the output: {error.strerror}", file=sys.stderr)
            os._exit(1)  # without the flush at the end, which would fail once more
        return
    if command not in COMMANDS:
        close = difflib.get_close_matches(command, COMMANDS, n=1)
        cure = f"did you mean {close[0]}?" if close else f"choose one of {', '.join(COMMANDS)}"
        print(f"error: there is no command {command!r}; {cure}", file=sys.stderr)
        sys.exit(2)
    sys.argv = [f"sem-jax {command}", *arguments]
    runpy.run_module(f"sem_jax.{command}", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
