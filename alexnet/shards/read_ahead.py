"""Which row groups an epoch's batches use and when; they are read before their first use.

A pool of threads reads row groups while earlier batches are in use. A row group is dropped after
its last row is used.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from alexnet.shards.format import RowGroup
from alexnet.shards.row_groups import RowGroupData

MAX_CONCURRENT_READS = 8
"""Row groups that are read at the same time: a request to an object store mostly waits."""


class _Schedule(NamedTuple):
    """Which row groups the batches of an epoch use, and when."""

    group_of_row: list[NDArray[np.intp]]
    """For each batch, (b,): the row group of each row."""
    index_of_row: list[NDArray[np.int64]]
    """For each batch, (b,): the index of each row within its row group."""
    read_order: list[int]
    """(used row groups,): the row groups in the order of their first rows."""
    reads_needed: NDArray[np.intp]
    """(batches,): how many groups of ``read_order`` that batch and all before it use together."""
    last_batch: NDArray[np.intp]
    """(row groups,): the last batch that uses each row group; -1 if none does."""


def _schedule(groups: Sequence[RowGroup], batch_rows: Sequence[NDArray[np.int64]]) -> _Schedule:
    """Look up the row groups of the batches.

    Args:
        groups: all row groups; row i of group g has the number ``sum(rows of groups[:g]) + i``.
        batch_rows: for each batch, (b,), the numbers of its rows in order.
    """
    # (row groups,) each: number of the first row, and of the row after the last.
    ends = np.cumsum([group.rows for group in groups])
    starts = ends - [group.rows for group in groups]
    # (batches,): rows in each batch; (batches - 1,): where all rows are divided into batches.
    sizes = [len(rows) for rows in batch_rows]
    boundaries = np.cumsum(sizes)[:-1]
    # (all rows of the batches,) each, in the order of use: row number, row group, batch.
    rows = np.concatenate([np.empty(0, np.int64), *batch_rows])
    group_of_row = np.searchsorted(ends, rows, side="right")
    batch_of_row = np.repeat(np.arange(len(batch_rows)), sizes)
    # (row groups,). A group is assigned once for each of its rows, and the last assignment stays.
    last_batch = np.full(len(groups), -1)
    last_batch[group_of_row] = batch_of_row
    # (row groups,): position in ``rows`` of the group's first row; ``len(rows)`` if it is not used.
    # In reverse order, the last assignment is that of the first row.
    first_position = np.full(len(groups), len(rows))
    first_position[group_of_row[::-1]] = np.arange(len(rows))[::-1]
    # (used row groups,), in the order of first use; unused groups are at the end and cut off.
    read_order = np.argsort(first_position)[: np.count_nonzero(first_position < len(rows))]
    # (used row groups,): the first batch of each; it ascends.
    first_batch = batch_of_row[first_position[read_order]]
    return _Schedule(
        np.split(group_of_row, boundaries),
        np.split(rows - starts[group_of_row], boundaries),
        read_order.tolist(),
        np.searchsorted(first_batch, np.arange(len(batch_rows)), "right"),
        last_batch,
    )


class StoredRows(NamedTuple):
    """Where the rows of a batch are stored, b rows."""

    groups: list[int]
    """(b,): the row group of each."""
    indices: list[int]
    """(b,): its index within the row group."""
    reads: dict[int, Future[RowGroupData]]
    """The row groups, when they have been read."""


class ReadAhead:
    """The row groups of an epoch; each is read before its first use and kept until its last."""

    def __init__(
        self,
        groups: Sequence[RowGroup],
        batch_rows: Sequence[NDArray[np.int64]],
        read: Callable[[RowGroup], RowGroupData],
        max_cached: int,
    ) -> None:
        """Begin to read.

        Args:
            groups: see ``_schedule``.
            batch_rows: see ``_schedule``.
            read: reads a row group.
            max_cached: row groups that are kept, unless batches in preparation need more.
        """
        self._groups = groups
        self._read = read
        self._max_cached = max_cached
        self._schedule = _schedule(groups, batch_rows)
        self._readers = ThreadPoolExecutor(MAX_CONCURRENT_READS, "read")
        self._reads = 0
        """Groups of ``read_order`` that have been submitted to the readers."""
        self._cached: dict[int, Future[RowGroupData]] = {}

    def fetch(self, number: int) -> StoredRows:
        """The rows of a batch, which are being read; batches are fetched in order."""
        self._submit(number)
        groups = self._schedule.group_of_row[number].tolist()
        indices = self._schedule.index_of_row[number].tolist()
        return StoredRows(groups, indices, {group: self._cached[group] for group in set(groups)})

    def _submit(self, number: int) -> None:
        """Submit the reads that a batch needs, and more while the cache has space."""
        order, needed = self._schedule.read_order, self._schedule.reads_needed[number]
        while self._reads < len(order) and (
            self._reads < needed or len(self._cached) < self._max_cached
        ):
            group = order[self._reads]
            self._cached[group] = self._readers.submit(self._read, self._groups[group])
            self._reads += 1

    def drop(self, number: int) -> None:
        """Remove the row groups that no batch after this one uses."""
        for group in set(self._schedule.group_of_row[number].tolist()):
            if self._schedule.last_batch[group] == number:
                del self._cached[group]

    def close(self) -> None:
        """Cancel what has not been read, and end the threads."""
        self._readers.shutdown(cancel_futures=True)
