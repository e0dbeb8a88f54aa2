"""What has changed in the course of a run, in words."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sem_jax.config.fields import shown
from sem_jax.reporting.runs import number


def events_of(lines: Iterable[dict[str, Any]]) -> list[str]:
    """A few words for each stage of the curriculum that has begun, and for each field that a rescue has changed.

    >>> line = {"split": "stage", "step": 1000, "stage": 2, "tokens": 0, "global_batch": 8, "seq_length": 256}
    >>> events_of([line])
    ['from step 1,000 on 8 x 256 tokens a step']
    """
    return [f"from step {line['step']:,} on {what}" for line in lines if (what := _what_changed(line))]


def _what_changed(line: dict[str, Any]) -> str:
    if line["split"] == "stage" and "tokens" in line:
        return f"{number(line, 'global_batch'):.0f} x {number(line, 'seq_length'):.0f} tokens a step"
    if line["split"] == "rescue":
        after, before = shown(line.get("after")), shown(line.get("before"))
        return f"{line.get('field')} = {after} in place of {before}, a remedy of --rescue"
    return ""
