"""Buffers are used again, but never while something refers to their memory."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from alexnet.shards.buffers import BufferPool


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 3)), max_size=30))
def test_no_memory_is_given_to_two_users(takes: list[tuple[int, int]]) -> None:
    """Each user holds an array, a view of it, a tensor or a view of a tensor; some let go of it."""
    pool = BufferPool((2,), np.int64)
    held: list[tuple[int, object]] = []
    for number, (count, kind) in enumerate(takes):
        array = pool.take(count)
        assert array.shape == (count, 2)
        array[:] = number
        tensor = torch.from_numpy(array)
        user = (array, array[:, 1:], tensor, tensor.view(-1)[::2])[kind]
        held.append((number, user))
        del array, tensor, user
        if kind == 1:
            del held[number % len(held)]
        for owner, kept in held:
            assert (np.asarray(kept) == owner).all()


def test_unused_memory_is_used_again() -> None:
    pool = BufferPool((1000,), np.uint8)
    first = pool.take(5)
    address = first.ctypes.data
    second = pool.take(5)
    assert second.ctypes.data != address
    del first
    assert pool.take(3).ctypes.data == address
    view = torch.from_numpy(second)[1:]
    del second
    assert pool.take(5).ctypes.data != view.data_ptr() - 1000
