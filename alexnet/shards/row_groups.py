"""Row groups for training: local shards are mapped, others are read by Arrow.

The images of a mapped row group are used where they are, in the system's page cache: nothing is
copied, and no memory of the process is used. A shard in an object store, or with a layout that
``pages`` does not know, is read by Arrow into memory. Arrow also reads whatever can't be mapped
because it is missing or damaged, and so says what is wrong.
"""

import ctypes
import errno
import mmap
from typing import Literal, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from alexnet import storage
from alexnet.shards.format import RowGroup, read_row_group
from alexnet.shards.pages import ShardLayout, find_values, read_layout

Verify = Literal["always", "once", "never"]
"""When pages are compared with their checksums: whenever a row group is read, when it is read for
the first time, or never."""

_MADV_POPULATE_READ = 22  # Of Linux since 5.14; Python has no name for it.
_LIBC = ctypes.CDLL(None, use_errno=True)


class RowGroupData(NamedTuple):
    """The columns ``image`` and ``label`` of a row group."""

    data: NDArray[np.uint8]
    """(bytes,): all stored images and what is between them; of a mapped file, or Arrow's memory."""
    starts: NDArray[np.int64]
    """(rows,): where each image starts in ``data``."""
    ends: NDArray[np.int64]
    """(rows,): where it ends."""
    labels: NDArray[np.int32]
    """(rows,)."""


class RowGroupReader:
    """Reads row groups, from any thread; keeps what it knows of the files from epoch to epoch."""

    def __init__(self) -> None:
        self._layouts: dict[str, ShardLayout] = {}
        self._verified: set[RowGroup] = set()

    def read(self, group: RowGroup, verify: Verify) -> RowGroupData:
        """A row group's images and labels.

        Raises:
            CorruptShardError: the shard is missing or damaged.
        """
        now = verify == "always" or (verify == "once" and group not in self._verified)
        data = None if storage.is_remote(group.path) else self._map(group, verify=now)
        if data is None:
            data = _read(group, verify=now)
        self._verified.add(group)
        return data

    def _map(self, group: RowGroup, *, verify: bool) -> RowGroupData | None:
        """The row group in a mapped file; None if Arrow has to read it."""
        try:
            layout = self._layouts.get(group.path)
            if layout is None:
                with storage.open_input(group.path) as file:
                    layout = self._layouts[group.path] = read_layout(file)
            chunk = layout.chunks[group.number]
            if chunk.rows != group.rows:
                return None
            data = _map_range(group.path, layout.size, chunk.start, chunk.end)
            starts, ends = find_values(data, chunk.rows, verify=verify)
        except (OSError, ValueError, LookupError, pa.ArrowException):
            return None
        return RowGroupData(data, starts, ends, layout.labels[group.number])


def _map_range(path: str, size: int, start: int, end: int) -> NDArray[np.uint8]:
    """(end - start,): a part of a file of ``size`` bytes, which is read into the page cache.

    Raises:
        ValueError: the file has another size.
        OSError: the file can't be read.
    """
    first = start - start % mmap.ALLOCATIONGRANULARITY
    _, inner = storage.locate(path)
    with open(inner, "rb") as file:
        if file.seek(0, 2) != size:
            raise ValueError("the file has changed")
        mapped = mmap.mmap(file.fileno(), end - first, access=mmap.ACCESS_READ, offset=first)
    data = np.frombuffer(mapped, np.uint8)
    # Here an error of the disk is an error; later, it would end the process. ctypes releases
    # Python's lock. A system that does not know this advice reads each page when it is used.
    address = ctypes.c_void_p(data.ctypes.data)
    failed = _LIBC.madvise(address, ctypes.c_size_t(len(data)), _MADV_POPULATE_READ)
    if failed and ctypes.get_errno() in (errno.EFAULT, errno.EIO):
        raise OSError(ctypes.get_errno(), "the file can't be read")
    return data[start - first :]


def _read(group: RowGroup, *, verify: bool) -> RowGroupData:
    """A row group in memory, read by Arrow."""
    table = read_row_group(group, ["image", "label"], verify=verify)
    (images,) = table["image"].chunks
    _, offsets, data = images.buffers()
    first = images.offset
    bounds = np.frombuffer(offsets, np.int32)[first : first + len(images) + 1].astype(np.int64)
    return RowGroupData(
        np.frombuffer(data, np.uint8), bounds[:-1], bounds[1:], table["label"].to_numpy()
    )
