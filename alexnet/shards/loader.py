"""Shard rows → batches of decoded images, in the order that ``order`` computes.

Two pools of threads work while the network computes: one reads row groups before their first row is
needed, the other decodes images into the batches (codecs and copies release Python's global lock).
A row group is dropped after its last row is used. The result does not depend on the number of
threads.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from alexnet.errors import CorruptShardError
from alexnet.recipes import IMAGE_SIZE
from alexnet.shards.codec import decode_into
from alexnet.shards.format import RowGroup, read_row_group
from alexnet.shards.gpu_decode import decode_on_gpu
from alexnet.shards.manifest import Manifest
from alexnet.shards.order import LANES, WINDOW, epoch_order, rows_of_rank

PREFETCH_BATCHES = 2
"""Batches that are prepared while one is in use, at least."""

IMAGES_PER_THREAD = 2
"""Images in preparation for each thread, at least: all have work also if batches are small."""

MAX_CACHED_ROW_GROUPS = 2 * LANES * WINDOW
"""Row groups in memory, unless the batches in preparation need more. All lanes begin their next
window at about the same time, and by then the row groups of that window should have been read."""

MAX_CONCURRENT_READS = 8
"""Row groups that are read at the same time: a request to an object store mostly waits."""

DECODE_CHUNK = 16
"""Images that a thread decodes in one task, at most; fewer if a batch has too few for all."""


class Batch(NamedTuple):
    """One worker's part of a global batch, b images."""

    images: Tensor
    """(b, 256, 256, 3) uint8."""
    labels: Tensor
    """(b,) int64."""
    positions: NDArray[np.int64]
    """(b,): index of each image within the global batch."""
    offset: int
    """Rows of the epoch before this global batch."""
    rows: int
    """Rows in the global batch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardLoader:
    """Loads a worker's training rows; the loaders of a run differ only in their ranks."""

    manifest: Manifest
    batch_size: int
    """Rows in a global batch; the epoch's last one may be smaller."""
    seed: int
    reshuffle: bool = True
    """Whether every epoch has an order of its own; if not, all have that of epoch 0."""
    rank: int = 0
    world_size: int = 1
    pieces: int | None = None
    """Parts of a global batch that are not divided among workers; None: it is divided by rows."""
    threads: int = 2
    """Threads that decode."""
    pin_memory: bool = False
    """Whether batches are in pinned memory, from which a GPU can copy asynchronously."""
    decode_on: torch.device | None = None
    """A GPU that decodes the training images, all of them JPEGs; None for the CPU."""

    def epoch(self, epoch: int, offset: int = 0) -> Iterator[Batch]:
        """The batches of one epoch, starting at an offset; all workers yield the same number.

        Args:
            epoch: from 0.
            offset: rows of the epoch to skip.

        Raises:
            CorruptShardError: a shard is missing or damaged.
        """
        groups = self.manifest.row_groups("train")
        # (all rows,) each: the epoch's row numbers in order, and the lane of each.
        drawn = epoch if self.reshuffle else 0
        rows, lanes = epoch_order([group.rows for group in groups], self.seed, drawn)
        starts = range(offset, len(rows), self.batch_size)
        batches = [slice(start, start + self.batch_size) for start in starts]
        # For each batch, (b,) each: this worker's positions in it, and their row numbers.
        own = self.rank, self.world_size, self.pieces
        positions = [rows_of_rank(lanes[batch], *own) for batch in batches]
        batch_rows = [rows[batch][p] for batch, p in zip(batches, positions, strict=True)]
        readers = ThreadPoolExecutor(MAX_CONCURRENT_READS, "read")
        decoders = ThreadPoolExecutor(self.threads, "decode")
        cache = _RowGroupCache(groups, batch_rows, readers, self.pin_memory, self.decode_on)
        share = max(map(len, batch_rows), default=0)
        chunk = min(max(share // self.threads, 1), DECODE_CHUNK)
        if self.decode_on:  # It decodes many at the same time.
            chunk = max(share, 1)
        ahead = max(PREFETCH_BATCHES, -(-IMAGES_PER_THREAD * self.threads // max(share, 1)))
        pending: deque[tuple[Batch, list[Future[None]]]] = deque()
        try:
            for number in range(len(batches)):
                for later in range(number + len(pending), min(number + ahead + 1, len(batches))):
                    images, labels, tasks = cache.fetch(later, decoders, chunk)
                    count = len(rows[batches[later]])
                    batch = Batch(images, labels, positions[later], starts[later], count)
                    pending.append((batch, tasks))
                for task in pending[0][1]:
                    task.result()
                cache.drop(number)
                yield pending.popleft()[0]
        finally:
            # Readers first: decoders wait for row groups until their reads end or are cancelled.
            readers.shutdown(cancel_futures=True)
            decoders.shutdown(cancel_futures=True)


def empty_images(count: int, *, pin_memory: bool) -> Tensor:
    """(count, 256, 256, 3) uint8 on the CPU, to be overwritten."""
    shape = (count, IMAGE_SIZE, IMAGE_SIZE, 3)
    if pin_memory:  # Torch reuses pinned memory for later batches; to allocate it is slow.
        return torch.empty(shape, dtype=torch.uint8, pin_memory=True)
    return torch.from_numpy(np.empty(shape, np.uint8))


class RowGroupData(NamedTuple):
    """The columns ``image`` and ``label`` of a row group, as views of Arrow's memory."""

    data: NDArray[np.uint8]
    """(bytes,): all stored images, one after the other."""
    bounds: NDArray[np.int32]
    """(rows + 1,): where each image starts in ``data``, and where the last one ends."""
    labels: NDArray[np.int32]
    """(rows,)."""


def load_row_group(group: RowGroup) -> RowGroupData:
    """Read a row group's images and labels.

    Raises:
        CorruptShardError: the shard is missing or damaged.
    """
    table = read_row_group(group, ["image", "label"])
    (images,) = table["image"].chunks
    _, bounds, data = images.buffers()
    return RowGroupData(
        np.frombuffer(data, np.uint8),
        np.frombuffer(bounds, np.int32)[images.offset : images.offset + len(images) + 1],
        table["label"].to_numpy(),
    )


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


@contextmanager
def _undecodable(where: str) -> Iterator[None]:
    """Name the shard of an image that can't be decoded."""
    try:
        yield
    except ValueError as error:
        raise CorruptShardError(f"{where}: an image can't be decoded ({error})") from error


class _RowGroupCache:
    """The row groups of an epoch; each is read before its first use and kept until its last."""

    def __init__(
        self,
        groups: list[RowGroup],
        batch_rows: list[NDArray[np.int64]],
        readers: ThreadPoolExecutor,
        pin_memory: bool,
        decode_on: torch.device | None,
    ) -> None:
        """``batch_rows``: see ``_schedule``."""
        self.decode_on = decode_on
        self.groups = groups
        self.readers = readers
        self.pin_memory = pin_memory
        self.schedule = _schedule(groups, batch_rows)
        self.reads = 0
        """Groups of ``read_order`` that have been submitted to the readers."""
        self.cached: dict[int, Future[RowGroupData]] = {}

    def fetch(
        self, number: int, decoders: ThreadPoolExecutor, chunk: int
    ) -> tuple[Tensor, Tensor, list[Future[None]]]:
        """Start to decode a batch, ``chunk`` images in a task; batches are fetched in order.

        Returns:
            Images, (b, 256, 256, 3) uint8, and labels, (b,) int64, which are complete when the
            futures are done.
        """
        self._read_ahead(number)
        groups = self.schedule.group_of_row[number].tolist()
        indices = self.schedule.index_of_row[number].tolist()
        images = empty_images(len(groups), pin_memory=self.pin_memory)
        pixels = images.numpy()
        labels = np.empty(len(groups), np.int64)
        reads = {group: self.cached[group] for group in set(groups)}

        def decode_chunk(start: int) -> None:
            rows = range(start, min(start + chunk, len(groups)))
            stored = []
            for row in rows:
                group, index = reads[groups[row]].result(), indices[row]
                begin, end = group.bounds[index : index + 2]
                stored.append(group.data[begin:end])
                labels[row] = group.labels[index]
            if self.decode_on:
                paths = sorted({self.groups[groups[row]].path for row in rows})
                with _undecodable(" or ".join(paths)):
                    decode_on_gpu(stored, images[start : rows.stop], self.decode_on)
                return
            for row, data in zip(rows, stored, strict=True):
                with _undecodable(self.groups[groups[row]].path):
                    decode_into(data, pixels[row])

        starts = range(0, len(groups), chunk)
        tasks = [decoders.submit(decode_chunk, start) for start in starts]
        return images, torch.from_numpy(labels), tasks

    def _read_ahead(self, number: int) -> None:
        """Submit the reads that a batch needs, and more while the cache has space."""
        order, needed = self.schedule.read_order, self.schedule.reads_needed[number]
        while self.reads < len(order) and (
            self.reads < needed or len(self.cached) < MAX_CACHED_ROW_GROUPS
        ):
            group = order[self.reads]
            self.cached[group] = self.readers.submit(load_row_group, self.groups[group])
            self.reads += 1

    def drop(self, number: int) -> None:
        """Remove the row groups that no batch after this one uses."""
        for group in set(self.schedule.group_of_row[number].tolist()):
            if self.schedule.last_batch[group] == number:
                del self.cached[group]
