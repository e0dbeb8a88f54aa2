"""Threads of the process: XLA has its own and shares the cores badly with those of LAPACK."""

from contextlib import AbstractContextManager

import scipy.linalg  # noqa: F401  (loads the LAPACK that XLA calls; only a loaded library can be limited)
from threadpoolctl import threadpool_limits


def single_threaded_lapack() -> AbstractContextManager:
    """Within the context LAPACK and BLAS, which factor the Hamiltonians on a CPU, use one thread.

    Their idle threads spin while XLA computes: on two cores a step of `configs/shakespeare_char.py` takes 0.28 s with
    them and 0.17 s without. Accelerators are not affected.
    """
    return threadpool_limits(1, user_api="blas")
