"""A state dict of the PyTorch original to a workdir, or a workdir to a state dict.

    python -m sem_jax.convert --state_dict=model.pt --workdir=runs/imported --set cayley_dt=0.2
    python -m sem_jax.convert --workdir=runs/imported --to=model.safetensors

docs/interop.md tells what is read, what is written and what --set may name.
"""

from __future__ import annotations

from absl import app, flags

from sem_jax.api import convert, load
from sem_jax.cli import checkpoint_flags, parse_flags, reporting_errors
from sem_jax.interop import InteropError, differences, export_state_dict, write_state_dict
from sem_jax.interop.files import require_writable_kind

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder to make, or, with --to, to read.", required=True)
_STATE_DICT = flags.DEFINE_string("state_dict", None, "File to import: .pt, .safetensors or .npz.")
_SET = flags.DEFINE_multi_string("set", [], "A value that no shape tells, as name=value; may be given several times.")
_TOKENIZER = flags.DEFINE_string("tokenizer", None, "tokenizer.json of the model; without it, text is token ids.")
_TO = flags.DEFINE_string("to", None, "File to export to: .safetensors or .npz.")
_CHECKPOINT, _FALLBACK = checkpoint_flags()


@reporting_errors
def main(argv: list[str]) -> None:
    """Runs the command line."""
    del argv
    state_dict, to = _STATE_DICT.value, _TO.value
    if state_dict is not None and to is None and _CHECKPOINT.value is None:
        model = convert(state_dict, _WORKDIR.value, _TOKENIZER.value, **_overrides(_SET.value))
        print(f"{_WORKDIR.value}: {model!r}")
    elif to is not None and state_dict is None and _TOKENIZER.value is None and not _SET.value:
        _export(to)
    else:
        raise app.UsageError(
            "give --state_dict with --set and --tokenizer to import, or --to with --checkpoint to export"
        )


def _export(path: str) -> None:
    require_writable_kind(path)
    model = load(_WORKDIR.value, _CHECKPOINT.value, _FALLBACK.value)
    arrays = export_state_dict(model.parts)
    write_state_dict(path, arrays)
    print(f"{path}: {len(arrays)} arrays of step {model.step}")
    for difference in differences(model.config):
        print(f"note: {difference}, which the original does not have; it computes something else with these weights")


def _overrides(settings: list[str]) -> dict[str, int | float]:
    """Values by their names, from texts such as "cayley_dt=0.2".

    Raises:
      InteropError: a text is of another form, or the value is no number.
    """
    values: dict[str, int | float] = {}
    for setting in settings:
        name, _, text = setting.partition("=")
        try:
            values[name] = int(text) if text.strip().lstrip("-").isdecimal() else float(text)
        except ValueError:
            raise InteropError(f"--set {setting} is not of the form name=number, such as cayley_dt=0.2") from None
    return values


if __name__ == "__main__":
    app.run(main, flags_parser=parse_flags)
