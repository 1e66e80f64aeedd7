"""Byte ranges of files: an image inside an archive, or a file of its own."""

import functools
from typing import cast

import pyarrow as pa

from alexnet.storage.files import is_remote, open_input


def read_range(path: str, offset: int, size: int) -> bytes:
    """``size`` bytes from ``offset`` on, of a local file or an object.

    Raises:
        OSError: the file can't be read.
        EOFError: the file ends before the range does.
    """
    if offset and is_remote(path):
        data = _open_archive(path).read_at(size, offset)
    else:
        with open_input(path) as file:
            data = file.read_at(size, offset)
    if len(data) < size:
        raise EOFError(f"{path}: ends {size - len(data)} bytes before the range does")
    return cast(bytes, data)


@functools.lru_cache(maxsize=4)
def _open_archive(path: str) -> pa.NativeFile:
    """An archive kept open: in an object store, opening costs more than reading an image."""
    return open_input(path)
