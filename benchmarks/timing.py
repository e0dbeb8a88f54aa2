"""The harness of every timing script here: interleaved repetitions, medians, compile time apart, peak memory, tables.

Only ratios of figures from one run mean anything: contenders take turns, so that what else the machine does falls on
all of them alike, and the rate of the machine's own matrix product is measured beside them.
"""

from __future__ import annotations

import ctypes
import gc
import json
import math
import multiprocessing
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from sem_jax.training.host import keep_freed_memory, single_threaded_lapack

PROCESS_STATUS = Path("/proc/self/status")
MIB = 2**20
GEMM_SIZE = 2048
XLA_GEMM, TORCH_GEMM = "GEMM, XLA", "GEMM, torch"


class Timing(NamedTuple):
    """Seconds of one call, over several calls."""

    median: float
    low: float  # first quartile
    high: float  # third quartile
    calls: int


def summarise(seconds: Sequence[float]) -> Timing:
    """Median and quartiles of at least one measurement."""
    if len(seconds) == 1:
        return Timing(seconds[0], seconds[0], seconds[0], 1)
    low, median, high = statistics.quantiles(seconds, n=4, method="inclusive")
    return Timing(median, low, high, len(seconds))


def interleaved(
    contenders: Mapping[str, Callable[[], Any]],
    seconds: float = 2.0,
    calls: tuple[int, int] = (3, 200),
    limits: Mapping[str, int] | None = None,
) -> dict[str, Timing]:
    """Times each contender, in turns, after one call that is not counted.

    LAPACK has one thread meanwhile, as in training.

    Args:
      contenders: functions without arguments; arrays that they return are waited for.
      seconds: what each may take together; decides how often it is called.
      calls: at least and at most so many of each.
      limits: fewer calls at most of some. Where that is 1, the call before is left out, too.
    """
    limits = limits or {}
    measured: dict[str, list[float]] = {name: [] for name in contenders}
    with single_threaded_lapack():
        first = {name: _call(run) for name, run in contenders.items() if limits.get(name) != 1}
        wanted = {name: min(max(int(seconds / first[name]), calls[0]), calls[1]) for name in first}
        wanted = {name: min(wanted.get(name, 1), limits.get(name, calls[1])) for name in contenders}
        for turn in range(max(wanted.values())):
            for name, run in contenders.items():
                # Spread over the whole run, those of few calls as well.
                if turn * wanted[name] // max(wanted.values()) == len(measured[name]):
                    measured[name].append(_call(run))
    return {name: summarise(values) for name, values in measured.items()}


def _call(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    jax.block_until_ready(run())
    return time.perf_counter() - start


class Compiled(NamedTuple):
    """A compiled function and what its compilation took."""

    call: Callable[..., Any]
    seconds: float


def compiled(function: Callable[..., Any], *arguments: Any) -> Compiled:
    """`jax.jit(function)` for these arguments; a function that is jitted already keeps its options."""
    jitted = function if hasattr(function, "lower") else jax.jit(function)
    start = time.perf_counter()
    with single_threaded_lapack():
        program = jitted.lower(*arguments).compile()
    return Compiled(program, time.perf_counter() - start)


def bound(function: Callable[..., Any], *arguments: Any) -> Callable[[], Any]:
    """A contender: the compiled function with its arguments."""
    program = compiled(function, *arguments).call
    return lambda: program(*arguments)


class Machine(NamedTuple):
    """What it runs on, and what that is capable of."""

    device: str
    threads: int  # of the process
    jax_gemm: float  # FLOP/s of one large float32 product by XLA
    torch_gemm: float | None  # by PyTorch, None where it was not asked
    copy_rate: float  # bytes/s, read and written, of x ← −x in place, over an array that fits no cache

    @property
    def gemm(self) -> float:
        """The better rate of the two."""
        return max(self.jax_gemm, self.torch_gemm or 0.0)

    def describe(self) -> str:
        """One line for the head of a table."""
        torch_rate = "" if self.torch_gemm is None else f", by torch {self.torch_gemm / 1e9:.0f}"
        return (
            f"{self.device}, {self.threads} CPU threads; float32 matrix product by XLA "
            f"{self.jax_gemm / 1e9:.0f} GFLOP/s{torch_rate}; memory {self.copy_rate / 1e9:.1f} GB/s"
        )


def gemm_contenders(size: int = GEMM_SIZE, with_torch: bool = False) -> dict[str, Callable[[], Any]]:
    """One large float32 matrix product of size³·2 FLOPs, by XLA and, if asked, by PyTorch."""
    x = jax.random.normal(jax.random.key(0), (size, size))
    contenders: dict[str, Callable[[], Any]] = {XLA_GEMM: bound(jnp.matmul, x, x)}
    if with_torch:
        import torch

        y = torch.randn(size, size)
        contenders[TORCH_GEMM] = lambda: torch.mm(y, y)
    return contenders


def gemm_rates(times: Mapping[str, Timing], size: int = GEMM_SIZE) -> dict[str, float]:
    """FLOP/s of the matrix products among contenders, by their names."""
    return {name: 2.0 * size**3 / times[name].median for name in (XLA_GEMM, TORCH_GEMM) if name in times}


def machine(with_torch: bool = False, size: int = GEMM_SIZE) -> Machine:
    """Measures the machine; to be called first, for it prepares the process as `sem_jax.train` does."""
    keep_freed_memory()
    negate = compiled(jax.jit(jnp.negative, donate_argnums=0), jnp.ones(2**25)).call  # 128 MiB
    words = [jnp.ones(2**25)]

    def copy():
        # In place: a fresh array would measure the system that clears its pages.
        words[0] = negate(words[0])
        return words[0]

    contenders = gemm_contenders(size, with_torch) | {"copy": copy}
    times = interleaved(contenders, seconds=1.0)
    rates = gemm_rates(times, size)
    return Machine(
        device=device_name(),
        threads=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        jax_gemm=rates[XLA_GEMM],
        torch_gemm=rates.get(TORCH_GEMM),
        copy_rate=2 * words[0].nbytes / times["copy"].median,
    )


def device_name() -> str:
    """Of the first JAX device; of a CPU, the processor's."""
    device = jax.devices()[0]
    if device.platform != "cpu":
        return device.device_kind
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def peak_memory(make: Callable[..., Callable[[], Any]], *arguments: Any) -> float | None:
    """Bytes that `run = make(*arguments)` holds between its calls, and what one call adds at its peak.

    A fresh process does it, after a call that takes care of compilation; programs and compilers do not count. None
    where the system does not tell (it is read from /proc, as on Linux).

    Args:
      make: importable by name; it and its arguments are pickled.
      arguments: of it.
    """
    if not PROCESS_STATUS.exists():
        return None
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return pool.apply(_peak, (make, *arguments))


def _peak(make: Callable[..., Callable[[], Any]], *arguments: Any) -> float:
    run = make(*arguments)
    with single_threaded_lapack():
        jax.block_until_ready(run())
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        held, before = _held(), _resident("VmRSS")
        # The high-water mark starts afresh; that of getrusage cannot, and a child inherits its parent's.
        Path("/proc/self/clear_refs").write_text("5")
        jax.block_until_ready(run())
    return held + _resident("VmHWM") - before


def in_own_process(make: Callable[..., Callable[[], Any]], *arguments: Any) -> Callable[[], Any]:
    """A contender, `make(*arguments)`, that runs in a process of its own, with the allocator as the system sets it.

    For what is not sem_jax: `machine` has prepared this process. A call adds less than a millisecond for the messages.

    Args:
      make: importable by name; it and its arguments are pickled. The first call makes the contender.
      arguments: of it.
    """
    pool = multiprocessing.get_context("spawn").Pool(1)
    return lambda: pool.apply(_run_here, (make, *arguments))


_MADE: list[Callable[[], Any]] = []  # in a process that `in_own_process` started, its contender


def _run_here(make: Callable[..., Callable[[], Any]], *arguments: Any) -> None:
    if not _MADE:
        _MADE.append(make(*arguments))
    jax.block_until_ready(_MADE[0]())


def _resident(field: str) -> float:
    return 1024.0 * int(PROCESS_STATUS.read_text().partition(field + ":")[2].split()[0])


def _held() -> float:
    """Bytes of all arrays of JAX and, where it is loaded, of PyTorch."""
    ours = sum(array.nbytes for array in jax.live_arrays())
    torch = sys.modules.get("torch")
    if torch is None:
        return ours
    # By type(), since objects that are loaded lazily raise when asked for their class.
    tensors = [x for x in gc.get_objects() if issubclass(type(x), torch.Tensor)]
    gradients = [x.grad for x in tensors if x.is_leaf and x.grad is not None]
    storages = {x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in [*tensors, *gradients]}
    return ours + sum(storages.values())


def table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Markdown with aligned columns."""
    cells = [[str(cell) for cell in row] for row in [header, *rows]]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in cells
    ]
    return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]])


def write_json(path: str, values: Any) -> None:
    """Writes plain values; NamedTuples become objects."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(json.dumps(plain(values), indent=2) + "\n")


def plain(values: Any) -> Any:
    """The same in dicts, lists and scalars."""
    if hasattr(values, "_asdict"):
        values = values._asdict()
    if isinstance(values, Mapping):
        return {str(key): plain(value) for key, value in values.items()}
    return [plain(value) for value in values] if isinstance(values, list | tuple) else values


def milliseconds(timing: Timing) -> str:
    """Median and quartiles for a table."""
    digits = 3 if timing.median < 1e-3 else 2 if timing.median < 1e-2 else 1 if timing.median < 0.1 else 0
    return f"{1e3 * timing.median:.{digits}f} ({1e3 * timing.low:.{digits}f}-{1e3 * timing.high:.{digits}f})"


def fitted_exponent(sizes: Sequence[float], values: Sequence[float]) -> float:
    """p of value ∝ size^p by least squares of the logarithms, over the upper half of the sizes, at least two."""
    count = max(2, (len(sizes) + 1) // 2)
    logs = [(math.log(size), math.log(value)) for size, value in zip(sizes[-count:], values[-count:], strict=True)]
    slope, _ = statistics.linear_regression(*zip(*logs, strict=True))
    return slope
