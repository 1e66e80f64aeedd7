"""Parts of local files, mapped into memory: read in the system's page cache, without a copy.

If the disk fails while a mapped page is used, the system ends the process. Therefore pages are read
into the cache beforehand, where the same failure is an ``OSError``.
"""

import ctypes
import errno
import mmap
import os

import numpy as np
from numpy.typing import NDArray

from alexnet.storage.files import local_path

_MADV_POPULATE_READ = 22  # Of Linux since 5.14; Python has no name for it.
_LIBC = ctypes.CDLL(None, use_errno=True)


def map_range(path: str, size: int, start: int, end: int) -> NDArray[np.uint8]:
    """(end - start,): a part of a file of ``size`` bytes; its pages are in the page cache.

    It is unmapped when nothing refers to the array any more.

    Raises:
        ValueError: the file has another size.
        OSError: the file can't be read.
    """
    first = start - start % mmap.ALLOCATIONGRANULARITY
    with open(local_path(path), "rb") as file:
        if file.seek(0, os.SEEK_END) != size:
            raise ValueError("the file has changed")
        mapped = mmap.mmap(file.fileno(), end - first, access=mmap.ACCESS_READ, offset=first)
    data = np.frombuffer(mapped, np.uint8)[start - first :]
    _populate(*_pages_of(data))
    return data


def make_resident(data: NDArray[np.uint8], path: str) -> None:
    """Read those pages of a mapped range into the page cache that are no longer there.

    Raises:
        OSError: the file can't be read, or has become shorter.
    """
    pages = _pages_of(data)
    if not (_may_ask(path) and _are_resident(*pages)):
        _populate(*pages)


def file_state(path: str) -> tuple[int, ...]:
    """What differs if a file has been replaced or written to.

    Raises:
        OSError: there is no such file.
    """
    status = os.stat(local_path(path))
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _pages_of(data: NDArray[np.uint8]) -> tuple[int, int]:
    """Address of the first page of a mapped range, and bytes from there to the range's end."""
    address = data.ctypes.data
    before = address % mmap.PAGESIZE
    return address - before, before + len(data)


def _populate(address: int, length: int) -> None:
    """Read pages; ctypes releases Python's lock.

    A system that does not know this advice reads each page when it is used.
    """
    advice = ctypes.c_void_p(address), ctypes.c_size_t(length), _MADV_POPULATE_READ
    if _LIBC.madvise(*advice) and ctypes.get_errno() in (errno.EFAULT, errno.EIO):
        raise OSError(ctypes.get_errno(), "the file can't be read")


def _are_resident(address: int, length: int) -> bool:
    """Whether all pages are in the page cache; 25 times as fast as to populate them again."""
    flags = np.zeros(-(-length // mmap.PAGESIZE), np.uint8)
    to = ctypes.c_void_p(flags.ctypes.data)
    failed = _LIBC.mincore(ctypes.c_void_p(address), ctypes.c_size_t(length), to)
    return not failed and bool(np.all(flags & 1))


def _may_ask(path: str) -> bool:
    """Whether ``mincore`` tells the truth: of files that one may not write, Linux says "all"."""
    return os.access(local_path(path), os.W_OK)
