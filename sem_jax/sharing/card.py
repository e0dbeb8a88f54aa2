"""The card of an exported model: README.md with the front matter that model hubs read, and the measured figures."""

from __future__ import annotations

import math
from typing import Any

import yaml

from sem_jax.config import Config
from sem_jax.inference.language_model import LanguageModel
from sem_jax.modules.model import count_parameters
from sem_jax.sharing.rounding import Rounding
from sem_jax.training.curriculum import tokens_read

_TEXT = """\
# {name}

A Signal-Entropic Model: a complex-valued, wave-like language model, trained with `sem_jax`.

## Use

```python
import sem_jax

model = sem_jax.load("FOLDER")  # the folder that holds this file
print(model.generate({prompt!r}, max_tokens=200, seed=0))
```

or, in a terminal,

    sem-jax generate --workdir=FOLDER --max_tokens=200
    sem-jax evaluate --workdir=FOLDER --config.data.path=TEXT

The second measures it on held-out text of your own.

## Figures

| what | value |
|---|---|
{figures}

{measured} on text from `{source}` that it had not been trained on. A complex parameter
counts as two real numbers.

## Files

| file | holds |
|---|---|
| `model.safetensors` | the weights{average}, {types}; layers of a kind are stacked |
| `config.json` | the whole configuration, and checksums of the other files |
| `tokenizer.json` | the {kind} vocabulary of {vocab_size} tokens |

## Licence

Not chosen yet: add `license:` to the head of this file, and what a reader should know of the training text and of the
model's limits.
"""

_MEASURED_AT_EXPORT = "The losses before and after rounding were measured at the export, on the same batches,"


def model_card(
    model: LanguageModel, config: Config, lines: list[dict[str, Any]], rounding: Rounding | None = None
) -> str:
    """The card as Markdown with a YAML head.

    Args:
      model: the model.
      config: its configuration as it is shared.
      lines: the metrics of its run, as of `read_metrics`; only lines up to the model's step are used.
      rounding: of its weights, and what it costs; None: they are shared as they are.
    """
    name = " ".join(config.name.split()) or "sem"
    told = [line for line in lines if line["step"] <= model.step]
    validation: dict[str, Any] = next((line for line in reversed(told) if line["split"] == "validation"), {})
    figures = _figures(model, config, told, validation)
    head = _head(name, config, validation)
    if rounding is not None:
        figures = _with_rounding(figures, rounding)
        head = _head(name, config, rounding.after._asdict() if rounding.after else {})
    body = _TEXT.format(
        name=name,
        prompt=config.sampling.prompt,
        figures="\n".join(f"| {what} | {value} |" for what, value in figures),
        measured=_MEASURED_AT_EXPORT if rounding and rounding.after else "The losses were measured by the run itself",
        source=config.data.source,
        average=" of the moving average" if config.training.ema_decay else "",
        types="float32 and complex64" if rounding is None else _rounded_types(rounding),
        kind=model.tokenizer.kind,
        vocab_size=model.tokenizer.vocab_size,
    )
    return f"---\n{head}---\n\n{body}"


def _head(name: str, config: Config, validation: dict[str, Any]) -> str:
    head: dict[str, Any] = {
        "library_name": "sem_jax",
        "pipeline_tag": "text-generation",
        "tags": ["jax", "flax", "complex-valued", "state-space-model", "signal-entropic-model"],
    }
    names = {"nll": ("loss", "nats/token"), "bits_per_byte": ("bits_per_byte", "bits/byte")}
    metrics = [
        {"type": kind, "name": unit, "value": round(validation[key], 6)}
        for key, (kind, unit) in names.items()
        if _is_number(validation.get(key))
    ]
    if metrics:
        dataset = {"type": config.data.source, "name": config.data.path or config.data.source, "split": "validation"}
        result = {"task": {"type": "text-generation"}, "dataset": dataset, "metrics": metrics}
        head["model-index"] = [{"name": name, "results": [result]}]
    return yaml.safe_dump(head, sort_keys=False, allow_unicode=True)


def _figures(
    model: LanguageModel, config: Config, told: list[dict[str, Any]], validation: dict[str, Any]
) -> list[tuple[str, str]]:
    """(what, value) of the numbers that are known."""
    training: dict[str, Any] = next((line for line in reversed(told) if line["split"] == "train"), {})
    tokens = int(tokens_read(config, [line for line in told if line["split"] == "stage"], model.step))
    figures = [
        ("parameters", f"{count_parameters(model.parts.params):,} real numbers"),
        ("training steps", f"{model.step:,}"),
        ("training tokens", f"{tokens:,}"),
    ]
    at = f"at step {validation['step']:,}" if validation else ""
    for line, key, what, unit in (
        (validation, "nll", "validation loss", f"nats/token {at}"),
        (validation, "bits_per_byte", "validation bits/byte", at),
        (training, "loss", "training loss", "nats/token"),
    ):
        if _is_number(line.get(key)):
            figures.append((what, f"{line[key]:.4f} {unit}".strip()))
    if _is_number(training.get("seconds")):
        figures.append(("time of the run", f"{training['seconds']:,.0f} s"))
    return figures


def _with_rounding(figures: list[tuple[str, str]], rounding: Rounding) -> list[tuple[str, str]]:
    """The figures with those of the rounded weights; the run's own speak of the weights before."""
    bits = f"rounded to {rounding.how.bits} bits"
    told = [(f"{what} before rounding" if what.startswith("validation") else what, value) for what, value in figures]
    if rounding.before is None or rounding.after is None:
        return [*told, (f"validation loss {bits}", "not measured")]
    measured = []
    for when, losses in (("before rounding", rounding.before), (bits, rounding.after)):
        measured.append((f"validation loss {when}", f"{losses.nll:.4f} nats/token"))
        measured.append((f"validation bits/byte {when}", f"{losses.bits_per_byte:.4f}"))
    return [row for row in told if not row[0].startswith("validation")] + measured


def _rounded_types(rounding: Rounding) -> str:
    bits, group = rounding.how
    packed = ", two in a byte" if bits == 4 else ""
    return (
        f"large matrices rounded to low + code x scale, real and imaginary parts apart: codes of {bits} bits{packed}, "
        f"a float16 low and scale for each {group} numbers of a row; all else float32 and complex64"
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
