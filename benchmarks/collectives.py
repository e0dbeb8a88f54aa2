"""What the devices of a compiled program send each other, read from its text.

A collective inside a loop counts once a turn. XLA notes the turns of a loop where it knows them; a loop without a note,
such as one that runs until it has converged, counts `unknown_turns`.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict

_WIDTHS = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "c64": 8}
_KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
_HEADER = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\{$")
_COLLECTIVE = re.compile(rf"= (.*?) ({'|'.join(_KINDS)})(?:-start)?\(")
_LOOP = re.compile(r" while\(.*body=%?([\w.\-]+)")
_TURNS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_CALLED = re.compile(r"(?:to_apply|calls|true_computation|false_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")


def result_bytes(shapes: str) -> int:
    """Bytes of the arrays in a text such as "(f32[8,16], c64[4])".

    >>> result_bytes("(f32[8,16]{1,0}, c64[4])")
    544
    """
    return sum(
        _WIDTHS[dtype] * math.prod(int(size) for size in sizes.split(",") if size)
        for dtype, sizes in re.findall(r"(\w+)\[([\d,]*)\]", shapes)
        if dtype in _WIDTHS
    )


def collective_bytes(program: str, unknown_turns: int = 1) -> dict[str, int]:
    """Bytes of the results of all collectives of one execution, by kind, on one device."""
    lines, entry = _computations(program)
    totals: dict[str, int] = defaultdict(int)

    def visit(name: str, times: int) -> None:
        for line in lines.get(name, []):
            if found := _COLLECTIVE.search(line):
                totals[found[2]] += times * result_bytes(found[1])
            elif found := _LOOP.search(line):
                known = _TURNS.search(line)
                visit(found[1], times * (int(known[1]) if known else unknown_turns))
            else:
                branches = [name for each in _BRANCHES.findall(line) for name in re.findall(r"[\w.\-]+", each)]
                for called in _CALLED.findall(line) + branches:
                    visit(called, times)

    visit(entry, 1)
    return dict(totals)


def _computations(program: str) -> tuple[dict[str, list[str]], str]:
    """The lines of each computation, and the name of the first that runs."""
    lines: dict[str, list[str]] = {}
    name = entry = ""
    for line in program.splitlines():
        if header := _HEADER.match(line):
            name = header[1]
            lines[name] = []
            entry = name if line.startswith("ENTRY") else entry
        elif name:
            lines[name].append(line)
    return lines, entry
