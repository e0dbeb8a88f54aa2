"""A page to try models on, and to see their waves: python -m sem_jax.play --workdir=runs/quickstart.

python -m sem_jax.play --workdir=runs/first,runs/second
"""

from __future__ import annotations

from absl import app, flags

from sem_jax.api import load
from sem_jax.cli import checkpoint_flags, parse_flags, reporting_errors
from sem_jax.config import ConfigError
from sem_jax.playground.server import PlayServer
from sem_jax.playground.session import Session

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of a run, or of two with a comma between.", required=True)
_PORT = flags.DEFINE_integer("port", 8000, "Of the page, on this machine only; 0: any free one.", 0, 65535)
_CHECKPOINT, _FALLBACK = checkpoint_flags()
_MOST_MODELS = 2


@reporting_errors
def main(argv: list[str]) -> None:
    """Runs the command line."""
    del argv
    workdirs = [folder for folder in _WORKDIR.value.split(",") if folder]
    if not 1 <= len(workdirs) <= _MOST_MODELS:
        raise ConfigError(f"--workdir names {len(workdirs)} folders; give one or two")
    server = PlayServer(_PORT.value)
    try:
        for workdir in workdirs:
            session = Session(workdir, load(workdir, _CHECKPOINT.value, _FALLBACK.value))
            print(f"{session.model}", flush=True)
            session.warm_up()
            server.sessions.append(session)
        print(f"open {server.address} in a browser of this machine; Ctrl-C ends it", flush=True)
        server.serve_forever()
    except KeyboardInterrupt:
        print("stopped")
    finally:
        server.stop()


if __name__ == "__main__":
    app.run(main, flags_parser=parse_flags)
