"""Every field in words: the text of `--help`, and the page docs/configuration.md.

python -m sem_jax.config.describe > docs/configuration.md
"""

from __future__ import annotations

import typing
from collections.abc import Iterator
from typing import Literal

from sem_jax.config.experiment import Config
from sem_jax.config.fields import Range, Setting, walk

_INTRODUCTION = """# Configuration

Every field, as `python -m sem_jax.config.describe > docs/configuration.md` writes it from `sem_jax/config/`. A config
file sets a field with `config.model.hidden_dim = 256`, the command line with `--config.model.hidden_dim=256`. Integers
must fit in 32 bits, and numbers must be finite in float32. A value outside its range is refused, and so are two fields
that do not fit together; the message names field and cure."""


def help_text() -> str:
    """All fields with default, meaning, allowed values and unit, one a line."""
    lines = []
    for path, _, settings in walk(Config):
        for each in settings:
            details = "; ".join(part for part in (allowed_values(each), each.unit) if part)
            lines.append(f"--config.{path}{each.name}={_default(each)}: {each.meaning} [{details or 'any'}]")
    return "\n".join(lines)


def allowed_values(setting: Setting) -> str:
    """What a field may be, such as "at least 1" or "born, reference"; empty: all that its type holds."""
    if typing.get_origin(setting.hint) is Literal:
        return ", ".join(map(str, typing.get_args(setting.hint)))
    if setting.hint is bool:
        return "True, False"
    return str(setting.range) if setting.range != Range() else ""


def markdown() -> str:
    """The page docs/configuration.md."""
    return "\n".join([_INTRODUCTION, *_tables()])


def _tables() -> Iterator[str]:
    for path, group, settings in walk(Config):
        yield f"\n## {path.rstrip('.') or 'config'}\n"
        yield f"{(group.__doc__ or '').splitlines()[0]}\n"
        yield "| field | default | allowed | unit | meaning |"
        yield "|---|---|---|---|---|"
        for each in settings:
            cells = (f"`{each.name}`", f"`{_default(each)}`", allowed_values(each), each.unit, each.meaning)
            yield "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _default(setting: Setting) -> str:
    plain = isinstance(setting.default, str) and setting.default.isprintable() and setting.default != ""
    return setting.default if plain else repr(setting.default)


if __name__ == "__main__":
    print(markdown())
