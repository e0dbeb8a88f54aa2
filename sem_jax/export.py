"""A model as a folder to be given to others: sem-jax export --workdir=runs/quickstart --to=shared/quickstart."""

from __future__ import annotations

from absl import app, flags

from sem_jax.api import export
from sem_jax.cli import checkpoint_flags, parse_flags, reporting_errors
from sem_jax.sharing.folder import FILES
from sem_jax.sharing.hub import push, require_library

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of a run.", required=True)
_TO = flags.DEFINE_string("to", None, "Folder to write: a new or an empty one, or an older export.", required=True)
_BITS = flags.DEFINE_enum(
    "bits",
    None,
    ["8", "4"],
    "Round large matrices to 8 or 4 bits a weight, for a smaller file; measures what it costs.",
)
_PUSH = flags.DEFINE_string("push", None, "USER/NAME of a repository on the hub, to which the folder is uploaded, too.")
_CHECKPOINT, _FALLBACK = checkpoint_flags()


@reporting_errors
def main(argv: list[str]) -> None:
    """Runs the command line."""
    del argv
    if _PUSH.value is not None:
        require_library()  # before minutes of work
    bits = None if _BITS.value is None else int(_BITS.value)
    folder = export(_WORKDIR.value, _TO.value, _CHECKPOINT.value, _FALLBACK.value, bits)
    print(f"{folder}: {', '.join(FILES)}")
    if _PUSH.value is not None:
        print(push(folder, _PUSH.value))


if __name__ == "__main__":
    app.run(main, flags_parser=parse_flags)
