"""Byte ranges of files: an image is part of an archive, or a whole file."""

import functools
from typing import cast

import pyarrow as pa

from alexnet.storage.files import is_remote, open_input


def read_range(path: str, offset: int, size: int) -> bytes:
    """``size`` bytes of a local file or an object, starting at ``offset``.

    Raises:
        OSError: the file can't be read.
        EOFError: the file ends before the range ends.
    """
    if offset and is_remote(path):
        data = _open_archive(path).read_at(size, offset)
    else:
        with open_input(path) as file:
            data = file.read_at(size, offset)
    if len(data) < size:
        raise EOFError(f"{path}: ends {size - len(data)} bytes before the range ends")
    return cast(bytes, data)


@functools.lru_cache(maxsize=4)
def _open_archive(path: str) -> pa.NativeFile:
    """An archive that stays open: opening an object takes longer than reading an image from it."""
    return open_input(path)
