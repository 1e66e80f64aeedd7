"""Arrays that are used again as soon as nothing refers to them.

The system clears each page of new memory when it is first written, which takes longer than to copy
an image to it. NumPy's and torch's own caches do not keep blocks of this size.
"""

import sys
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

T = TypeVar("T", bound=np.generic)


def _references(buffers: list[NDArray[T]]) -> list[int]:
    return [sys.getrefcount(buffer) for buffer in buffers]


(_UNUSED,) = _references([np.empty(0)])
"""References to an array in a list, as ``_references`` counts them, if there is no other one."""


class BufferPool(Generic[T]):
    """Arrays of one kind of elements; only one thread may take them."""

    def __init__(self, shape: tuple[int, ...], dtype: type[T]) -> None:
        """``shape`` and ``dtype`` are those of an element."""
        self._shape = shape
        self._dtype = dtype
        self._buffers: list[NDArray[T]] = []

    def take(self, count: int) -> NDArray[T]:
        """(count, *shape), with any content; it is not given to others while anything refers to it.

        References of views and of tensors that share the memory count too.
        """
        for number, references in enumerate(_references(self._buffers)):
            if references == _UNUSED:
                if len(self._buffers[number]) >= count:
                    return self._buffers[number][:count]
                del self._buffers[number]  # Too small; larger ones are needed now.
                break
        # NumPy requests huge pages, unlike torch.
        self._buffers.append(np.empty((count, *self._shape), self._dtype))
        return self._buffers[-1][:count]
