"""The process on its host: threads that do not get in each other's way, and memory that stays mapped."""

import ctypes
import sys
from contextlib import AbstractContextManager

import jax
import scipy.linalg  # noqa: F401  (loads the LAPACK that XLA calls; only a loaded library can be limited)
from threadpoolctl import threadpool_limits

# Of glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4


def single_threaded_lapack() -> AbstractContextManager:
    """Within the context LAPACK and BLAS, which factor the Hamiltonians on a CPU, use one thread.

    Their idle threads spin while XLA computes: on two cores a step of `configs/shakespeare_char.py` takes 0.28 s with
    them and 0.17 s without. Accelerators are not affected.
    """
    return threadpool_limits(1, user_api="blas")


def keep_freed_memory() -> None:
    """Lets this process keep the memory that it frees. To be called before JAX computes anything.

    On a CPU XLA allocates the temporary memory of each call anew. glibc maps such large blocks and unmaps them, and the
    kernel clears every page when it is touched: 108,000 page faults in a step of D 256, L 8, V 32768, which takes
    0.73 s that way and 0.59 s without. The memory stays in the heap of the main thread, so that JAX has to run its
    programs in the thread that calls them. Accelerators are not affected, nor systems without glibc.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(_M_MMAP_MAX, 0)  # all from the heap
        mallopt(_M_TRIM_THRESHOLD, -1)  # which never shrinks
        jax.config.update("jax_cpu_enable_async_dispatch", False)
