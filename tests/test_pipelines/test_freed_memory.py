"""Freed memory is reused, also in a thread, which has its own heap."""

import os
import platform
import subprocess
import sys

import pytest

from pipelines.cluster import KEEP_FREED_MEMORY

PROGRAM = """
import resource, threading
import numpy as np

def work():
    small = [bytes(100) for _ in range(1000)]
    for number in range(12):
        if number == 2:
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        np.empty(100_000_000, np.uint8).fill(number)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)

thread = threading.Thread(target=work)
thread.start()
thread.join()
"""


def page_faults(environment: dict[str, str]) -> int:
    """Page faults while ten arrays of 100 MB are filled, one after the other."""
    # With huge pages there would be few.
    variables = os.environ | {"NUMPY_MADVISE_HUGEPAGE": "0"} | environment
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=variables, capture_output=True, text=True, check=True
    )
    return int(done.stdout)


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the variables are glibc's")
def test_freed_blocks_are_not_mapped_again() -> None:
    if page_faults(dict.fromkeys(KEEP_FREED_MEMORY, "")) < 10 * 1000:
        pytest.skip("this system uses huge pages by default")
    assert page_faults(KEEP_FREED_MEMORY) < 1000
