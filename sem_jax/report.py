"""What a run achieved, as Markdown and as a page: python -m sem_jax.report --workdir=runs/quickstart.

python -m sem_jax.report --workdir=runs/first,runs/second --output=comparison.html
"""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from absl import app, flags

from sem_jax.data import DataError
from sem_jax.data.files import write_atomically
from sem_jax.reporting.events import events_of
from sem_jax.reporting.page import FILE_NAME, write_page
from sem_jax.reporting.runs import number
from sem_jax.reporting.times import rows_of
from sem_jax.training.metrics import read_metrics
from sem_jax.training.workdir import open_workdir

_BARS = "▁▂▃▄▅▆▇█"
_CURVE_WIDTH = 60
_SKIPS_SHOWN = 20


def write_report(workdir: str | Path) -> str:
    """Writes `report.md` into the workdir and returns its text; raises as `report` does, and DataError."""
    text = report(workdir)
    _save(workdir, text)
    return text


def _save(workdir: str | Path, text: str) -> None:
    write_atomically(Path(workdir) / "report.md", text)


def report(workdir: str | Path) -> str:
    """What a run has achieved so far, as Markdown.

    Raises:
      ConfigError, MetricsError: the folder is not the workdir of a run that has trained.
    """
    config, tokenizer = open_workdir(workdir)
    lines = read_metrics(Path(workdir) / "metrics.jsonl")
    train = [line for line in lines if line["split"] == "train"]
    validation = [line for line in lines if line["split"] == "validation"]
    skips = [line for line in lines if line["split"] == "skip"]
    return "\n".join(
        [
            f"# {config.name}",
            "",
            f"Vocabulary {tokenizer.vocab_size} ({tokenizer.kind}), data {config.data.source}, "
            f"{config.training.global_batch} x {config.data.seq_length} tokens a step.",
            "",
            *_event_list(lines),
            *_training_lines(train),
            "",
            *_skip_table(skips),
            *_validation_table(validation),
            "",
            *_time_table([line for line in lines if line["split"] == "time"]),
        ]
    )


def _event_list(lines: list[dict[str, Any]]) -> list[str]:
    events = [f"- {event}" for event in events_of(lines)]
    return [*events, ""] if events else []


def _training_lines(train: list[dict[str, Any]]) -> list[str]:
    if not train:
        return ["No training step has been reported yet."]
    losses = _column(train, "loss")
    speeds = sorted(filter(math.isfinite, _column(train, "tokens_per_s")))
    rate = f", median {speeds[len(speeds) // 2]:,.0f} tokens/s" if speeds else ""
    return [
        f"Training loss over {train[-1]['step']} steps, {losses[0]:.3f} to {losses[-1]:.3f}:",
        "",
        f"    {_curve(losses)}",
        "",
        f"Skipped steps {number(train[-1], 'skipped'):.0f}, reports with a loss that is not finite "
        f"{sum(not math.isfinite(loss) for loss in losses)}, worst residual "
        f"{max(_column(train, 'residual')):.1e}, worst norm drift "
        f"{max(_column(train, 'norm_drift')):.1e}{rate}.",
    ]


def _skip_table(skips: list[dict[str, Any]]) -> list[str]:
    if not skips:
        return []
    rows = [f"| {v['step']} | {v.get('reason', '')} | {v.get('leaf', '')} |" for v in skips[-_SKIPS_SHOWN:]]
    hidden = len(skips) - len(rows)
    title = [f"The last {len(rows)} of {len(skips)} skipped steps:", ""] if hidden else []
    return [*title, "| skipped step | cause | first bad leaf |", "|---|---|---|", *rows, ""]


def _column(lines: list[dict[str, Any]], name: str) -> list[float]:
    return [number(line, name) for line in lines]


def _curve(values: list[float]) -> str:
    """A line of block characters, the mean of each of at most 60 stretches; a stretch that is not finite is an x."""
    count = min(_CURVE_WIDTH, len(values))
    edges = [round(i * len(values) / count) for i in range(count + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in itertools.pairwise(edges)]
    finite = [mean for mean in means if math.isfinite(mean)]
    low, span = (min(finite), (max(finite) - min(finite)) or 1.0) if finite else (0.0, 1.0)
    return "".join(
        _BARS[round((mean - low) / span * (len(_BARS) - 1))] if math.isfinite(mean) else "x" for mean in means
    )


def _validation_table(validation: list[dict[str, Any]]) -> list[str]:
    if not validation:
        return ["No evaluation has been made yet."]
    rows = [f"| {v['step']} | {number(v, 'nll'):.4f} | {number(v, 'bits_per_byte'):.4f} |" for v in validation]
    return ["| step | nats/token | bits/byte |", "|---|---|---|", *rows]


def _time_table(times: list[dict[str, Any]]) -> list[str]:
    rows = [f"| {row.meaning} | {row.seconds:,.1f} | {row.share:.1%} |" for row in rows_of(times)]
    return ["| where the time went | seconds | share |", "|---|---|---|", *rows, ""] if rows else []


def main(argv: list[str]) -> None:
    """Runs the command line."""
    del argv
    workdirs = [folder for folder in flags.FLAGS.workdir.split(",") if folder]
    if not workdirs:
        raise app.UsageError("--workdir names no folder")
    texts = [report(workdir) for workdir in workdirs]
    print("\n".join(texts))
    if flags.FLAGS.output is not None:
        write_page(workdirs, flags.FLAGS.output)
        return
    if len(workdirs) == 1:
        _write_if_possible(lambda: _save(workdirs[0], texts[0]))
    _write_if_possible(lambda: write_page(workdirs, Path(workdirs[0]) / FILE_NAME))


def _write_if_possible(write: Callable[[], None]) -> None:
    try:
        write()
    except DataError as error:  # to look at somebody else's run is no error
        print(f"note: {error}, such as --output=report.html", file=sys.stderr)


if __name__ == "__main__":
    flags.DEFINE_string("workdir", None, "Folder of a run; several, with commas between, are compared.", required=True)
    flags.DEFINE_string("output", None, "The page goes into this file, and nothing into the workdir.")
    from sem_jax.cli import parse_flags, reporting_errors

    app.run(reporting_errors(main), flags_parser=parse_flags)
