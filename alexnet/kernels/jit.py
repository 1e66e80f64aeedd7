"""Python loops as machine code, and a batch worked off on all cores.

For the few places of a training step on a CPU where one pass over memory can do what takes
torch a dozen. Numba compiles a loop when it is first used, some seconds for all of them, and
keeps the result beside the module's byte code, or where ``NUMBA_CACHE_DIR`` says.

Loops are compiled without the liberties of "fast math": every operation is IEEE 754's, in the
order written, so the same input gives the same bits on any CPU and any number of cores.
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
    """``loop`` as machine code that lets other threads work meanwhile."""
    import numba  # Half a second, for nothing where all the work is done by GPUs.

    compile_loop = functools.partial(numba.njit, nogil=True, error_model="numpy")
    try:
        made: Loop = compile_loop(cache=True)(loop)
    except RuntimeError:  # Neither the package's folder nor the user's can be written to.
        made = compile_loop()(loop)
    return made


def parallel_over_batch(
    loop: Callable[..., None], arrays: list[NDArray[Any]], *settings: Any
) -> None:
    """``loop(*arrays, *settings)``, each of torch's threads with some of the arrays' first axis."""
    threads, count = torch.get_num_threads(), len(arrays[0])
    cuts = [count * number // threads for number in range(threads + 1)]
    parts = [
        [array[begin:end] for array in arrays]
        for begin, end in itertools.pairwise(cuts)
        if begin < end
    ]
    # This thread works too: the others wake up while it does.
    work = [_pool(threads).submit(loop, *part, *settings) for part in parts[1:]]
    for part in parts[:1]:
        loop(*part, *settings)
    for piece in work:
        piece.result()


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, "loop")
