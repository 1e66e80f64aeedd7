"""Python loops compiled to machine code, and a batch split over threads.

These loops are for the few parts of a training step on a CPU where one pass over memory replaces a
dozen torch operations. Numba compiles a loop at its first use; all of them take some seconds. It
stores the result in ``__pycache__`` or in the folder that ``NUMBA_CACHE_DIR`` names.

Loops are compiled without "fast math". Every operation follows IEEE 754, in the order written, so
the same input gives the same bits on any CPU and with any number of threads.
"""

import functools
import itertools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import torch
from numpy.typing import NDArray

Loop = TypeVar("Loop", bound=Callable[..., Any])


def jit(loop: Loop) -> Loop:
    """Compile ``loop`` to machine code that releases Python's lock."""
    import numba  # Takes half a second, and is not needed if GPUs do all the work.

    compile_loop = functools.partial(numba.njit, nogil=True, error_model="numpy")
    try:
        compiled: Loop = compile_loop(cache=True)(loop)
    except RuntimeError:  # Neither the package's folder nor the user's cache folder is writable.
        compiled = compile_loop()(loop)
    return compiled


def parallel_over_batch(
    loop: Callable[..., None], arrays: list[NDArray[Any]], *settings: Any
) -> None:
    """Call ``loop(*arrays, *settings)`` in as many threads as torch uses.

    Each thread gets an equal part of the arrays' first axis.
    """
    threads, count = torch.get_num_threads(), len(arrays[0])
    bounds = [count * number // threads for number in range(threads + 1)]
    parts = [
        [array[start:end] for array in arrays]
        for start, end in itertools.pairwise(bounds)
        if start < end
    ]
    # The calling thread computes the first part while the others start.
    futures = [_pool(threads).submit(loop, *part, *settings) for part in parts[1:]]
    for part in parts[:1]:
        loop(*part, *settings)
    for future in futures:
        future.result()


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, "loop")
