"""The page of one run, or of several laid over each other: one HTML file that refers to nothing else."""

from __future__ import annotations

import base64
import datetime
import hashlib
import importlib.resources
import math
from collections.abc import Sequence
from pathlib import Path

from sem_jax.data.files import write_atomically
from sem_jax.reporting.axes import short_number
from sem_jax.reporting.charts import Chart, draw
from sem_jax.reporting.elements import Node, element, to_text
from sem_jax.reporting.events import events_of
from sem_jax.reporting.figures import COLOURS, learning, optimizer, propagators, waves, why_empty
from sem_jax.reporting.runs import Run, number, read_runs
from sem_jax.reporting.settings import settings_section
from sem_jax.reporting.skips import Skips, skips_of
from sem_jax.reporting.times import times_section

FILE_NAME = "report.html"
_POSITIONS = ("steps", "tokens", "seconds")
_MOST_SKIPS = 100  # rows
_OPEN_SKIPS = 12  # rows that are shown without a click
_SAMPLES = 6
_LONGEST_SAMPLE = 2000  # characters


def write_page(workdirs: Sequence[str | Path], output: str | Path, live: bool = False) -> None:
    """Writes the page of some runs, whole or not at all.

    Args:
      workdirs: of the runs; the first decides the title.
      output: the file.
      live: whether a run is training, so that the page loads itself anew from time to time.

    Raises:
      ConfigError, DataError, MetricsError: a folder is not the workdir of a run that has trained, or the file cannot be
        written.
    """
    write_atomically(Path(output), page(read_runs(workdirs), live))


def page(runs: Sequence[Run], live: bool = False) -> str:
    """The page as text; `live` as in `write_page`."""
    skips = [skips_of(run) for run in runs]
    # The marks of several runs would hide each other; their numbers stand in the head of the page.
    marked = skips[0] if len(runs) == 1 else []
    title = runs[0].config.name if len(runs) == 1 else f"{len(runs)} runs"
    style, script = _file("style.css"), _file("page.js")
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", http_equiv="Content-Security-Policy", content=_policy(script)),
        element("title", f"{title} · sem_jax"),
        element("style", style),
    )
    body = element(
        "body",
        element(
            "main",
            *(_switch(position) for position in _POSITIONS),
            _header(title, runs, live),
            _section("Learning", _tabs(), _grid(learning(runs, marked), runs)),
            _section("Optimizer", _grid(optimizer(runs, marked), runs), *_skip_tables(runs, skips)),
            _section("Propagators", *_lead(runs, "health"), _grid(propagators(runs), runs)),
            _section("Wave", *_lead(runs, "validation"), _grid(waves(runs), runs)),
            _section("Samples", *[node for run in runs for node in _samples(run, len(runs) > 1)]),
            _section("Time", *times_section(runs)),
            _section("Configuration", *settings_section(runs)),
            element("footer", f"Written by sem_jax, {_now()}."),
        ),
        element("script", script),
        data_live="yes" if live else None,
    )
    return f"<!doctype html>\n{to_text(element('html', head, body, lang='en'))}\n"


def _file(name: str) -> str:
    return importlib.resources.files("sem_jax.reporting").joinpath(name).read_text(encoding="utf-8")


def _policy(script: str) -> str:
    """Forbids the browser all that the page does not bring along, and every script but its own."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _section(title: str, *children: Node) -> Node:
    return element("section", element("h2", title), *children)


def _grid(charts: Sequence[Chart], runs: Sequence[Run]) -> Node:
    drawings = (draw(chart, why_empty(runs)) for chart in charts)
    return element("div", *drawings, class_="grid three" if len(charts) == 3 else "grid")


def _switch(position: str) -> Node:
    checked = "checked" if position == _POSITIONS[0] else None
    return element("input", type="radio", name="position", id=f"by-{position}", class_="switch", checked=checked)


def _tabs() -> Node:
    labels = (
        element("label", name, for_=f"by-{kind}")
        for kind, name in zip(_POSITIONS, ("steps", "tokens", "time"), strict=True)
    )
    return element("div", "against ", *labels, class_="tabs")


def _lead(runs: Sequence[Run], split: str) -> list[Node]:
    """How to tell the curves of a section from each other."""
    if len(runs) == 1:
        return [element("p", "Layers from shallow", element("span", class_="ramp"), "to deep.", class_="lead")]
    which = "the worst layer at each step" if split == "health" else "the deepest layer"
    return [element("p", f"Of each run, {which}.", class_="lead")]


def _header(title: str, runs: Sequence[Run], live: bool) -> Node:
    first = runs[0]
    about = [
        f"{first.config.data.source}, vocabulary {first.tokenizer.vocab_size:,} ({first.tokenizer.kind}), "
        f"{first.config.training.global_batch} × {first.config.data.seq_length} tokens a step",
        *events_of([*first.split("stage"), *first.split("rescue")]),
    ]
    return element(
        "header",
        element("p", _state(first, live) if len(runs) == 1 else "compared", class_="state live" if live else "state"),
        element("h1", title),
        element("p", "; ".join(about), class_="about") if len(runs) == 1 else None,
        _tiles(first) if len(runs) == 1 else _comparison(runs),
    )


def _state(run: Run, live: bool) -> str:
    last, steps = run.last_step, run.config.training.max_steps
    if last >= steps:
        return f"finished after {steps:,} steps"
    return f"{'training, ' if live else ''}step {last:,} of {steps:,}"


def _tiles(run: Run) -> Node:
    tiles = [
        element("div", element("dt", name), element("dd", value), element("dd", detail, class_="detail"))
        for name, value, detail in _figures(run)
    ]
    return element("dl", *tiles, class_="tiles")


def _comparison(runs: Sequence[Run]) -> Node:
    """One row a run with the figures that matter."""
    figures = [_figures(run) for run in runs]
    head = element("tr", element("th", "run"), *(element("th", name) for name, _, _ in figures[0]))
    rows = [
        element(
            "tr",
            element("td", element("span", class_=f"swatch c{i % COLOURS}"), run.name),
            *(element("td", value, title=detail) for _, value, detail in found),
        )
        for i, (run, found) in enumerate(zip(runs, figures, strict=True))
    ]
    table = element("table", element("thead", head), element("tbody", *rows), class_="runs")
    return element("div", table, class_="scroll")


def _figures(run: Run) -> list[tuple[str, str, str]]:
    """(name, value, what kind of value) of the numbers that matter most."""
    split = "validation" if run.split("validation") else "train"
    lines = run.split(split)
    last = lines[-1] if lines else {"step": 0}
    detail = f"{split}, step {last['step']:,}" if lines else "not measured yet"
    speeds = sorted(v for v in run.points("train", "tokens_per_s").values.tolist() if math.isfinite(v))
    skipped = sum(len(group.steps) for group in skips_of(run))
    return [
        ("loss", _decimals(number(last, "nll"), 3), f"nats/token, {detail}"),
        ("bits/byte", _decimals(number(last, "bits_per_byte"), 3), detail),
        ("parameters", short_number(run.parameters), f"{run.parameters:,}"),
        ("tokens/s", short_number(speeds[len(speeds) // 2]) if speeds else "–", "median of training"),
        ("skipped steps", f"{skipped:,}", f"of {run.last_step:,}"),
    ]


def _decimals(value: float, count: int) -> str:
    return f"{value:.{count}f}" if math.isfinite(value) else "–"


def _skip_tables(runs: Sequence[Run], skips: Sequence[list[Skips]]) -> list[Node]:
    several = len(runs) > 1
    tables = [
        _skip_table(run.name if several else "", groups) for run, groups in zip(runs, skips, strict=True) if groups
    ]
    return tables or [element("p", "No step was skipped.", class_="lead")]


def _skip_table(name: str, groups: list[Skips]) -> Node:
    shown, hidden = groups[-_MOST_SKIPS:], len(groups) - _MOST_SKIPS
    head = element("tr", *(element("th", text) for text in ("", "step", "cause", "first bad leaf", "scale then")))
    rows = [
        element(
            "tr",
            element("td", str(group.number), class_="number"),
            element("td", group.span),
            element("td", group.cause),
            element("td", element("code", group.leaf) if group.leaf else "–"),
            element("td", short_number(group.lr_scale) if math.isfinite(group.lr_scale) else "–"),
        )
        for group in shown
    ]
    title = f"Skipped steps{f' of {name}' if name else ''}" + (
        f", the last {_MOST_SKIPS} of {len(groups)}" if hidden > 0 else ""
    )
    table = element("table", element("thead", head), element("tbody", *rows), class_="skips")
    is_open = "open" if len(groups) <= _OPEN_SKIPS else None
    return element("details", element("summary", title), element("div", table, class_="scroll"), open=is_open)


def _samples(run: Run, several: bool) -> list[Node]:
    """Some samples from the first to the newest, the prompt of each set apart."""
    lines = [line for line in run.split("sample") if isinstance(line.get("text"), str)]
    heading = [element("h3", run.name)] if several else []
    if not lines:
        return [*heading, element("p", "No sample has been recorded.", class_="empty")]
    count = min(_SAMPLES if not several else 2, len(lines))
    chosen = sorted({round(i * (len(lines) - 1) / max(count - 1, 1)) for i in range(count)} | {len(lines) - 1})
    items = [node for i in chosen for node in _sample(lines[i]["step"], lines[i]["text"], run.config.sampling.prompt)]
    note = f"{len(chosen)} of {len(lines)}, from the first to the newest" if len(chosen) < len(lines) else ""
    return [*heading, *([element("p", note, class_="lead")] if note else []), element("dl", *items, class_="samples")]


def _sample(step: int, text: str, prompt: str) -> list[Node]:
    text = text if len(text) <= _LONGEST_SAMPLE else text[:_LONGEST_SAMPLE] + "…"
    known = prompt if prompt and text.startswith(prompt) else ""
    written = element("pre", element("span", known, class_="prompt"), text[len(known) :])
    return [element("dt", f"step {step:,}"), element("dd", written)]
