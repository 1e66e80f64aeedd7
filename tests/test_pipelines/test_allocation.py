"""Freed memory is used again, also in a thread that has a heap of its own."""

import os
import platform
import subprocess
import sys

import pytest

from alexnet.allocation import KEEP_FREED_MEMORY

FAULTS = """
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


def faults(environment: dict[str, str]) -> int:
    """Page faults of ten arrays of 100 MB, one after the other."""
    # Huge pages would hide them.
    settings = os.environ | {"NUMPY_MADVISE_HUGEPAGE": "0"} | environment
    done = subprocess.run(
        [sys.executable, "-c", FAULTS], env=settings, capture_output=True, text=True, check=True
    )
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the variables are glibc's")
def test_large_blocks_are_faulted_in_once() -> None:
    if faults(dict.fromkeys(KEEP_FREED_MEMORY, "")) < 10 * 1000:
        pytest.skip("this system gives huge pages unasked")
    assert faults(KEEP_FREED_MEMORY) < 1000
