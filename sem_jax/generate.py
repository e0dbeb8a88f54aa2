"""Continues a text: python -m sem_jax.generate --workdir=runs/quickstart --prompt="def "."""

from __future__ import annotations

from typing import cast

from absl import app, flags

from sem_jax.api import load
from sem_jax.cli import checkpoint_flags, parse_flags, reporting_errors
from sem_jax.inference.language_model import ContextMode

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of a run, or an exported model.", required=True)
_PROMPT = flags.DEFINE_string("prompt", None, "Text to continue; without it, the run's own.")
_MAX_TOKENS = flags.DEFINE_integer("max_tokens", None, "Tokens to draw at most.")
_TEMPERATURE = flags.DEFINE_float("temperature", None, "0 takes the most probable token.")
_TOP_K = flags.DEFINE_integer("top_k", None, "Draw among the k most probable tokens; 0: all.")
_TOP_P = flags.DEFINE_float("top_p", None, "Draw among the most probable tokens that together reach this probability.")
_CONTEXT = flags.DEFINE_enum(
    "context", None, ["restart", "unbounded"], "After the training length: read the last half afresh, or go on."
)
_SEED = flags.DEFINE_integer("seed", 0, "The same seed draws the same text.")
_CHECKPOINT, _FALLBACK = checkpoint_flags()


@reporting_errors
def main(argv: list[str]) -> None:
    """Runs the command line."""
    del argv
    model = load(_WORKDIR.value, _CHECKPOINT.value, _FALLBACK.value)
    prompt = model.config.sampling.prompt if _PROMPT.value is None else _PROMPT.value
    context = cast(ContextMode | None, _CONTEXT.value)
    options = (_TEMPERATURE.value, _TOP_K.value, _TOP_P.value, context)
    print(model.generate(prompt, _MAX_TOKENS.value, _SEED.value, *options))


if __name__ == "__main__":
    app.run(main, flags_parser=parse_flags)
