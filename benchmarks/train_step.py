"""How fast is a training step, and what does it hold in memory, beside PyTorch and beside the machine's limit?

Command:  python benchmarks/train_step.py [--shapes=char,d128,d256] [--contenders=default,reference,torch,gpt]
          [--calls=torch:1,torch_reference:1] [--compile_limit=120] [--seconds=5] [--json=FILE]

Contenders take turns, each with the whole step of one random batch: loss, gradient, clipping, optimizer. Those of
PyTorch run in processes of their own, since the memory settings of `sem_jax.train` would speed them up, too.

  selective                      sem_jax's default model; it has no ratio, as nothing in PyTorch computes the same
  unrolled                       the same with each layer compiled by itself, as the small recipes have it
  default, elementwise, layers   plan, fixed B and C, Born readout; recomputed: nothing, or what `remat` names
  cg                             the same with the solver "cg" of configs/max_aggression.py
  reference                      sem_jax in the arithmetic of configs/reference.py
  torch, torch_reference         the plain PyTorch reference of the tests, in either arithmetic: a loop over time, a
                                 complex solve, logits over the whole vocabulary
  torch_compile                  the first of them under torch.compile; given up after --compile_limit seconds
  gpt                            a GPT in PyTorch of as many parameters and layers, fused AdamW

Prints medians and quartiles, tokens a second, the ratio to the PyTorch reference in the same arithmetic, the peak of
memory in one step (state, gradients and intermediates, in a process of its own; programs do not count), and the rate of
FLOPs that the step needs (`benchmarks/flops.py`), as a share of the machine's own float32 matrix product in the
same run. `python benchmarks/components.py` shows where the time goes.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

from absl import app, flags
from contenders import training_step
from flops import needed
from shapes import REFERENCE, SELECTIVE, SHAPES, configuration, shape_of
from timing import (
    MIB,
    Timing,
    gemm_contenders,
    gemm_rates,
    in_own_process,
    interleaved,
    machine,
    milliseconds,
    peak_memory,
    table,
    write_json,
)
from torch_contenders import gpt_of, gpt_step, reference_step, time_limit

from sem_jax.config import Config
from sem_jax.modules.model import abstract_model, count_parameters

OURS: dict[str, dict[str, Any]] = {
    "selective": SELECTIVE,
    "unrolled": SELECTIVE | {"scan_layers": False},
    "default": {},
    "elementwise": {"remat": "elementwise"},
    "layers": {"remat": "layers"},
    "cg": {"propagator.solver": "cg"},
    "reference": REFERENCE,
}
THEIRS: dict[str, dict[str, Any]] = {"torch": {}, "torch_reference": REFERENCE, "torch_compile": {}, "gpt": {}}
# "torch" for all others; nothing in PyTorch computes what the selective model does.
BASELINE = {"reference": "torch_reference", "torch_reference": "torch_reference", "selective": None, "unrolled": None}

_SHAPES = flags.DEFINE_list("shapes", ["char", "d128", "d256"], "Names of shapes, of benchmarks/shapes.py.")
_CONTENDERS = flags.DEFINE_list(
    "contenders",
    ["selective", "default", "elementwise", "reference", "torch", "torch_reference", "torch_compile", "gpt"],
    "Which.",
)
_SECONDS = flags.DEFINE_float("seconds", 5.0, "Time for each contender.")
_CALLS = flags.DEFINE_list("calls", [], "Calls at most, as contender:number; 1 leaves out the uncounted one before.")
_COMPILE_LIMIT = flags.DEFINE_integer("compile_limit", 120, "Seconds that torch.compile may take.")
_MEMORY = flags.DEFINE_bool("memory", True, "Measure memory.")
_JSON = flags.DEFINE_string("json", "", "File for the same numbers.")


class Result(NamedTuple):
    """Of one contender at one shape."""

    timing: Timing | None  # None: it did not run
    tokens_per_second: float | None
    speedup: float | None  # over the PyTorch reference in the same arithmetic
    share_of_gemm: float | None  # of ours
    memory: float | None  # bytes
    memory_share: float | None  # of what that PyTorch reference takes
    compile_seconds: float | None
    parameters: int


def config_of(name: str, shape: str) -> Config:
    return configuration(SHAPES[shape], (OURS | THEIRS)[name])


def make_step(name: str, shape: str) -> Callable[[], Any]:
    """The step of a contender."""
    config = config_of(name, shape)
    if name in OURS:
        return training_step(config).call
    return gpt_step(config) if name == "gpt" else reference_step(config, compiled=name == "torch_compile")


def prepare(name: str, shape: str) -> tuple[Callable[[], Any] | None, float | None]:
    """(the step, seconds of compilation); without a step if torch.compile did not succeed in time."""
    if name in OURS:
        return training_step(config_of(name, shape))
    if name != "torch_compile":
        return in_own_process(make_step, name, shape), None
    step = make_step(name, shape)
    start = time.perf_counter()
    try:
        with time_limit(_COMPILE_LIMIT.value):
            step()
    except Exception as error:
        print(f"torch.compile gave up after {time.perf_counter() - start:.0f} s: {type(error).__name__}", flush=True)
        return None, None
    return step, time.perf_counter() - start


def measure(shape: str) -> dict[str, Result]:
    prepared = {name: prepare(name, shape) for name in _CONTENDERS.value}
    steps = {name: step for name, (step, _) in prepared.items() if step}
    limits = {name: int(calls) for name, _, calls in (entry.partition(":") for entry in _CALLS.value)}
    # The machine's own rate beside the steps: it changes by a tenth from minute to minute.
    times = interleaved(steps | gemm_contenders(with_torch=True), _SECONDS.value, limits=limits)
    memory = {name: peak_memory(make_step, name, shape) for name in steps if _MEMORY.value}
    return {name: result(name, shape, times, memory, prepared[name][1]) for name in prepared}


def result(name: str, shape: str, times: dict[str, Timing], memory: dict[str, float], seconds: float | None) -> Result:
    config, base = config_of(name, shape), BASELINE.get(name, "torch")
    time, used = times.get(name), memory.get(name)
    parameters = count_parameters(abstract_model(config.model).params)
    if name == "gpt":
        parameters = sum(p.numel() for p in gpt_of(config).parameters())
    return Result(
        timing=time,
        tokens_per_second=shape_of(config).tokens / time.median if time else None,
        speedup=times[base].median / time.median if time and base in times else None,
        share_of_gemm=needed(config) / time.median / max(gemm_rates(times).values()) if time and name in OURS else None,
        memory=used,
        memory_share=used / memory[base] if used and base in memory else None,
        compile_seconds=seconds,
        parameters=parameters,
    )


def cell(value: float | None, form: str) -> str:
    return "" if value is None else form.format(value)


def report(results: dict[str, Result]) -> str:
    rows = [
        [
            name,
            f"{r.parameters:,}",
            milliseconds(r.timing) if r.timing else "no result",
            cell(r.tokens_per_second, "{:,.0f}"),
            cell(r.speedup, "{:.1f}"),
            cell(r.share_of_gemm and 100 * r.share_of_gemm, "{:.0f}"),
            cell(r.memory and r.memory / MIB, "{:,.0f}"),
            cell(r.memory_share, "{:.2f}"),
            cell(r.compile_seconds, "{:.1f}"),
        ]
        for name, r in results.items()
    ]
    header = ["contender", "parameters", "step, ms", "tokens/s", "times PyTorch", "% of GEMM rate", "peak, MiB"]
    return table([*header, "of PyTorch's", "compilation, s"], rows)


def main(argv: list[str]) -> None:
    del argv
    host = machine(with_torch=True)
    print(host.describe(), flush=True)
    saved: dict[str, Any] = {"machine": host}
    for shape in _SHAPES.value:
        saved[shape] = measure(shape)
        print(f"\n{shape}: {SHAPES[shape]}\n\n{report(saved[shape])}", flush=True)
    if _JSON.value:
        write_json(_JSON.value, saved)


if __name__ == "__main__":
    app.run(main)
