"""How fast is sem_jax, in one table? Runs the other timing scripts at small sizes; `make bench` does this.

Command:  python benchmarks/summary.py [--folder=runs/bench] [--only=train_step,decode]

Each script prints its own table on the way and writes FOLDER/NAME.json; summary.json holds the rows of the last table.
Every figure is a ratio of two medians from one run, or a rate beside the machine's own.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from absl import app, flags
from timing import table, write_json

RUNS = {
    "train_step": "--shapes=char,d128 --contenders=selective,elementwise,torch,gpt --seconds=2",
    "scaling": "--axes=S,V --max_S=4096 --max_V=16384 --seconds=0.5",
    "decode": "--contexts=64,4096 --batches=1 --recomputed=64,256 --seconds=1",
    "readout": "--vocabularies=16384 --tokens=1024 --seconds=1",
    "cayley": "--dims=128,256 --tokens=512 --seconds=0.5",
    "scan": "--lengths=256,1024 --states=128 --seconds=0.5",
}

_FOLDER = flags.DEFINE_string("folder", "runs/bench", "Where the JSON files go.")
_ONLY = flags.DEFINE_list("only", list(RUNS), "Which scripts.")

Row = tuple[str, str]
Saved = dict[str, Any]


def train_step_rows(saved: Saved) -> Iterator[Row]:
    for shape, results in saved.items():
        if shape == "machine":
            continue
        gpt = results["gpt"]["tokens_per_second"]
        for name, title in (("selective", "default model"), ("elementwise", "fixed B and C, Born")):
            found = results[name]
            if found["speedup"]:
                yield f"{shape}, {title}: training step over PyTorch's", f"{found['speedup']:.1f} times as fast"
                yield f"{shape}, {title}: peak memory over PyTorch's", f"{found['memory_share']:.2f}"
            yield f"{shape}, {title}: tokens a second", f"{found['tokens_per_second']:,.0f}"
            yield f"{shape}, {title}: share of the matrix-product rate", f"{100 * found['share_of_gemm']:.0f} %"
            faster = found["tokens_per_second"] / gpt
            yield f"{shape}, {title}: speed over a GPT of as many parameters", f"{faster:.2f} times"


def scaling_rows(saved: Saved) -> Iterator[Row]:
    for axis, curve in saved["curves"].items():
        yield f"time of a step against {axis}", f"{axis}^{curve['exponent']:.2f}"
    curve = saved["curves"]["V"]
    first, last = (1e3 * curve["a_token_more"][end] for end in (0, -1))
    yield f"a token more, at V {curve['sizes'][0]} and {curve['sizes'][-1]}", f"{first:.3f} and {last:.3f} ms"


def decode_rows(saved: Saved) -> Iterator[Row]:
    drawn = saved["drawn"]["1"]
    yield "a token after 4096 over one after 64", f"{saved['ratios']['1']['4096']:.2f}"
    yield "tokens a second, one text", f"{1 / drawn['4096']['median']:,.0f}"
    for length, timing in saved["recomputed"].items():
        yield f"a prefix of {length} encoded again", f"{timing['median'] / drawn['64']['median']:.1f} times as slow"


def readout_rows(saved: Saved) -> Iterator[Row]:
    for p in saved["points"]:
        where = f"likelihood, V {p['vocab']}, {p['tokens']} tokens: Gram matrix over logits"
        yield where, f"{p['logits']['median'] / p['gram']['median']:.1f} times as fast"
        yield where + ", memory", f"{p['gram_memory'] / p['logits_memory']:.2f}"


def cayley_rows(saved: Saved) -> Iterator[Row]:
    for dim in sorted({p["dim"] for p in saved["points"]}):
        times = {p["solver"]: p["training"]["median"] for p in saved["points"] if p["dim"] == dim}
        ratios = ", ".join(f"{name} {t / min(times.values()):.1f}" for name, t in times.items())
        yield f"Cayley step, D {dim}: time over the fastest solver's", ratios


def scan_rows(saved: Saved) -> Iterator[Row]:
    for length in sorted({p["length"] for p in saved["points"]}):
        times = {p["method"]: p["training"]["median"] for p in saved["points"] if p["length"] == length}
        ratios = ", ".join(f"{name} {t / min(times.values()):.1f}" for name, t in times.items())
        yield f"recurrence, S {length}: time over the fastest form's", ratios


ROWS = {
    "train_step": train_step_rows,
    "scaling": scaling_rows,
    "decode": decode_rows,
    "readout": readout_rows,
    "cayley": cayley_rows,
    "scan": scan_rows,
}


def run(name: str) -> Saved:
    """What a script measures, printed on the way."""
    path = Path(_FOLDER.value) / f"{name}.json"
    script = Path(__file__).parent / f"{name}.py"
    print(f"\n== {name}.py {RUNS[name]}\n", flush=True)
    subprocess.run([sys.executable, str(script), *RUNS[name].split(), f"--json={path}"], check=True)
    return json.loads(path.read_text())


def main(argv: list[str]) -> None:
    del argv
    rows = [row for name in _ONLY.value for row in ROWS[name](run(name))]
    print("\n" + table(["figure", "measured"], rows))
    write_json(str(Path(_FOLDER.value) / "summary.json"), dict(rows))


if __name__ == "__main__":
    app.run(main)
