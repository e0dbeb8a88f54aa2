"""How fast is a training step on this device, and how near to its limits?

Command:  python benchmarks/accelerator.py --config=configs/shakespeare_char.py --config.model.vocab_size=65
          [--batches=12,48] [--seconds=2] [--json=FILE]

Measures the device first: its matrix product in each precision, and how fast it moves memory. Then the step of the
configuration for each size of batch, in a process of its own: seconds to compile, milliseconds of a step when the next
one is asked for before this one has ended, tokens a second, the peak of memory, and the rate of FLOPs that the step
needs (`benchmarks/flops.py`). A batch is worked through at once, of random tokens; no data is read.
"""

from __future__ import annotations

import multiprocessing
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
from absl import app, flags
from contenders import training_step
from flops import needed
from ml_collections import ConfigDict, config_flags
from timing import GEMM_SIZE, bound, device_name, interleaved, machine, table, write_json

from sem_jax.config import build, default
from sem_jax.training.host import single_threaded_lapack

_CONFIG = config_flags.DEFINE_config_file("config", "configs/shakespeare_char.py", "The experiment.")
_BATCHES = flags.DEFINE_list("batches", ["12"], "Sizes of the batch, with commas.")
_SECONDS = flags.DEFINE_float("seconds", 2.0, "Time for each measurement.")
_JSON = flags.DEFINE_string("json", "", "File for the same numbers.")


class Case(NamedTuple):
    """What was measured of one size of batch."""

    batch: int
    compile_seconds: float
    step_ms: float
    tokens_per_second: float
    flops: float  # FLOP/s that the step needs
    peak_bytes: float | None  # None where the device does not tell
    loss: float  # of the first step
    residual: float  # the worst of the first step


def measure(experiment: ConfigDict, batch: int, seconds: float) -> Case:
    """One size of batch, in this process."""
    experiment.training.update(global_batch=batch, micro_batch=batch)
    experiment.data.source = default().data.source  # whatever the recipe reads: the tokens are random
    config = build(experiment)
    program = training_step(config)
    with single_threaded_lapack():
        first = jax.block_until_ready(program.call())
        start = time.perf_counter()
        jax.block_until_ready(program.call())
        steps = max(int(seconds / (time.perf_counter() - start)), 3)
        start = time.perf_counter()
        for _ in range(steps):
            last = program.call()
        jax.block_until_ready(last)
        step = (time.perf_counter() - start) / steps
    memory = jax.devices()[0].memory_stats()
    return Case(
        batch=batch,
        compile_seconds=program.seconds,
        step_ms=1e3 * step,
        tokens_per_second=batch * config.data.seq_length / step,
        flops=needed(config) / step,
        peak_bytes=memory["peak_bytes_in_use"] if memory else None,
        loss=float(first.loss),
        residual=float(jnp.max(first.propagators.residual, initial=0)),
    )


def limits(seconds: float) -> dict[str, float]:
    """TFLOP/s of a square matrix product in each precision, and "copy", GB/s read and written."""
    size = GEMM_SIZE if jax.default_backend() == "cpu" else 8192
    host = machine(size=size)
    x = jax.random.normal(jax.random.key(0), (size, size))
    products = {
        "float32": bound(lambda x: jnp.matmul(x, x, precision="highest"), x),
        "bfloat16": bound(jnp.matmul, x.astype(jnp.bfloat16), x.astype(jnp.bfloat16)),
    }
    times = interleaved(products, seconds)
    rates = {name: 2 * size**3 / times[name].median / 1e12 for name in products}
    # Without a precision JAX takes ten bits (TF32) on a GPU, eight on a TPU, all on a CPU.
    return rates | {"as a rule": host.jax_gemm / 1e12, "copy": host.copy_rate / 1e9}


def report(cases: list[Case]) -> str:
    """The table of the cases."""
    rows = [
        [
            case.batch,
            f"{case.compile_seconds:.0f}",
            f"{case.step_ms:.1f}",
            f"{case.tokens_per_second:,.0f}",
            f"{case.flops / 1e12:.3g}",
            "" if case.peak_bytes is None else f"{case.peak_bytes / 2**30:.1f}",
            f"{case.loss:.5f}",
            f"{case.residual:.1e}",
        ]
        for case in cases
    ]
    header = ["batch", "compilation, s", "step, ms", "tokens/s", "TFLOP/s", "peak, GiB", "first loss", "residual"]
    return table(header, rows)


def main(argv: list[str]) -> None:
    """Measures and prints."""
    del argv
    context = multiprocessing.get_context("spawn")
    cases = []
    for batch in map(int, _BATCHES.value):
        with context.Pool(1) as pool:  # a process each: memory that one held would count as the next one's
            cases.append(pool.apply(measure, (_CONFIG.value, batch, _SECONDS.value)))
        print(report(cases[-1:]), flush=True)
    rates = limits(_SECONDS.value)
    described = ", ".join(f"{name} {rate:.4g}" for name, rate in rates.items())
    print(f"\n{device_name()}, JAX {jax.__version__}; TFLOP/s of a matrix product and GB/s copied: {described}\n")
    print(report(cases))
    if _JSON.value:
        write_json(_JSON.value, {"device": device_name(), "jax": jax.__version__, "limits": rates, "cases": cases})


if __name__ == "__main__":
    app.run(main)
