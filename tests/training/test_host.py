import resource
import subprocess
import sys
import textwrap

import pytest

PROGRAM = """
    import resource
    import jax, jax.numpy as jnp
    from sem_jax.training.host import keep_freed_memory
    {prepare}
    call = jax.jit(jnp.negative)
    x = jnp.arange(2.0**24)  # 64 MiB, and its negative is freed after each call
    for _ in range(3):
        call(x).block_until_ready()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        call(x).block_until_ready()
    print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / 20)
"""


def page_faults(prepare):
    """Of one call in a process of its own."""
    program = textwrap.dedent(PROGRAM.format(prepare=prepare))
    run = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    return float(run.stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator")
def test_freed_memory_is_kept_for_the_next_call():
    pages = 2**26 / resource.getpagesize()
    assert page_faults("") > 0.5 * pages
    # The heap may still grow by a block in a few of the calls.
    assert page_faults("keep_freed_memory()") < 0.25 * pages
