"""What has changed in the course of a run, in words."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sem_jax.reporting.runs import number


def events_of(lines: Iterable[dict[str, Any]]) -> list[str]:
    """One sentence for each stage of the curriculum that has begun.

    >>> line = {"split": "stage", "step": 1000, "stage": 2, "tokens": 0, "global_batch": 8, "seq_length": 256}
    >>> events_of([line])
    ['from step 1,000 on 8 x 256 tokens a step']
    """
    begun = [line for line in lines if line["split"] == "stage" and "tokens" in line]
    return [
        f"from step {line['step']:,} on {number(line, 'global_batch'):.0f} x {number(line, 'seq_length'):.0f} "
        "tokens a step"
        for line in begun
    ]
