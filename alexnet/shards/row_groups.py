"""Row groups for training: local shards are mapped, others are read by Arrow.

The images of a mapped row group are used where they are, in the system's page cache: nothing is
copied, and no memory of the process is used. A shard in an object store, or with a layout that
``pages`` does not know, is read by Arrow into memory. Arrow also reads whatever can't be mapped
because it is missing or damaged, and so says what is wrong.
"""

from typing import Literal, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from alexnet import storage
from alexnet.shards.codec import RAW_BYTES
from alexnet.shards.format import RowGroup, read_row_group
from alexnet.shards.pages import ShardLayout, find_values, read_layout
from alexnet.storage.maps import file_state, make_resident, map_range

Verify = Literal["always", "once", "never"]
"""When pages are compared with their checksums: whenever a row group is read, when it is read for
the first time, or never."""

MAX_KEPT_BYTES = 2**35
"""Mapped bytes that are kept from epoch to epoch. To map a row group of raw images again takes as
long as to copy its images. The kernel needs 2 bytes for each 1,000, 64 MB for this many."""

MAX_KEPT_MAPS = 2**14
"""Linux allows a process 65,530 maps."""


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
    address: int
    """Where ``data`` begins in memory, which NumPy takes long to say."""
    raw: bool
    """Whether all images are stored raw, so that no decoder has to see them."""


class _StoredGroup(NamedTuple):
    """A row group in a file as it is now: what is known of it is not used for a replaced file."""

    group: RowGroup
    file: tuple[int, ...]
    """From ``file_state``; empty for a file in an object store, and one that is missing."""


class RowGroupReader:
    """Reads row groups, from any thread; keeps what it knows of the files from epoch to epoch."""

    def __init__(self) -> None:
        self._layouts: dict[tuple[str, tuple[int, ...]], ShardLayout] = {}
        self._verified: set[RowGroup] = set()
        self._kept: dict[_StoredGroup, RowGroupData] = {}
        self._kept_bytes = 0

    def read(self, group: RowGroup, verify: Verify, *, by_image: bool = False) -> RowGroupData:
        """A row group's images and labels.

        Args:
            group: the row group.
            verify: when its pages are compared with their checksums.
            by_image: whether the caller reads each image of a kept map into the page cache before
                it is used; otherwise the whole row group is read.

        Raises:
            CorruptShardError: the shard is missing or damaged.
        """
        stored = _StoredGroup(group, _state_of(group.path))
        now = verify == "always" or (verify == "once" and group not in self._verified)
        data = self._map(stored, verify=now, by_image=by_image) if stored.file else None
        if data is None:
            data = _read(group, verify=now)
        self._verified.add(group)
        return data

    def _map(self, stored: _StoredGroup, *, verify: bool, by_image: bool) -> RowGroupData | None:
        """The row group in a mapped file; None if Arrow has to read it."""
        kept = self._kept.get(stored)
        try:
            if kept and not verify:
                if not by_image:
                    make_resident(kept.data, stored.group.path)
                return kept
            rows = self._map_anew(stored, verify=verify)
        except (OSError, ValueError, LookupError, pa.ArrowException):
            return None
        if kept or self._keep_one_more(rows):
            self._kept[stored] = rows
        return rows

    def _keep_one_more(self, rows: RowGroupData) -> bool:
        """Whether another map may be kept; it is counted then."""
        size = len(rows.data)
        if len(self._kept) >= MAX_KEPT_MAPS or self._kept_bytes + size > MAX_KEPT_BYTES:
            return False
        self._kept_bytes += size
        return True

    def _map_anew(self, stored: _StoredGroup, *, verify: bool) -> RowGroupData:
        """Map a row group; the errors are those of ``pages``, and LookupError."""
        group = stored.group
        layout = self._layouts.get((group.path, stored.file))
        if layout is None:
            with storage.open_input(group.path) as file:
                layout = self._layouts[group.path, stored.file] = read_layout(file)
        chunk = layout.chunks[group.number]
        if chunk.rows != group.rows:
            raise ValueError(f"{chunk.rows} rows, not {group.rows}")
        data = map_range(group.path, layout.size, chunk.start, chunk.end)
        starts, ends = find_values(data, chunk.rows, verify=verify)
        return _row_group_data(data, starts, ends, layout.labels[group.number])


def _state_of(path: str) -> tuple[int, ...]:
    """The state of a local file; empty for others."""
    try:
        return () if storage.is_remote(path) else file_state(path)
    except OSError:
        return ()


def _read(group: RowGroup, *, verify: bool) -> RowGroupData:
    """A row group in memory, read by Arrow."""
    table = read_row_group(group, ["image", "label"], verify=verify)
    (images,) = table["image"].chunks
    _, offsets, data = images.buffers()
    first = images.offset
    bounds = np.frombuffer(offsets, np.int32)[first : first + len(images) + 1].astype(np.int64)
    values = np.frombuffer(data, np.uint8)
    return _row_group_data(values, bounds[:-1], bounds[1:], table["label"].to_numpy())


def _row_group_data(
    data: NDArray[np.uint8],
    starts: NDArray[np.int64],
    ends: NDArray[np.int64],
    labels: NDArray[np.int32],
) -> RowGroupData:
    raw = bool(np.all(ends - starts == RAW_BYTES))
    return RowGroupData(data, starts, ends, labels, data.ctypes.data, raw)
