"""Shard rows → batches of decoded images, in the order that ``order`` gives.

Two pools of threads work while the network computes: one reads row groups ahead of their first
use, the other decodes straight into the batches (codecs and copies release Python's lock). A row
group is dropped after its last use. The result is the same for any number of threads.
"""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from alexnet.errors import UserError
from alexnet.recipes import IMAGE_SIZE
from alexnet.shards.codec import decode_into
from alexnet.shards.format import Manifest, RowGroup, read_row_group
from alexnet.shards.order import LANES, WINDOW, epoch_order, rows_of_rank

PREFETCH_BATCHES = 2
"""Batches that are prepared while one is in use."""

MAX_CACHED_ROW_GROUPS = 2 * LANES * WINDOW
"""Row groups in memory, as far as batches in preparation don't need more: all lanes enter their
next window at about the same time, and by then its groups should have been read."""

MAX_CONCURRENT_READS = 8
"""Row groups that are read at once: a request to an object store is mostly waiting."""

DECODE_CHUNK = 16
"""Images that a thread decodes in one go."""


class Batch(NamedTuple):
    """One worker's part of a global batch."""

    images: Tensor
    """(b, 256, 256, 3) uint8."""
    labels: Tensor
    """(b,) int64."""
    positions: NDArray[np.int64]
    """(b,): where in the global batch these images stand."""
    offset: int
    """Rows of the epoch before this global batch."""
    rows: int
    """Rows in the global batch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardLoader:
    """A worker's view of the training rows; every worker of a run has the same but its rank."""

    manifest: Manifest
    batch_size: int
    """Rows in a global batch; the epoch's last one may be smaller."""
    seed: int
    rank: int = 0
    world: int = 1
    threads: int = 2
    pinned: bool = False
    """Whether batches lie in memory that a GPU copies from while the program goes on."""

    def epoch(self, epoch: int, offset: int = 0) -> Iterator[Batch]:
        """The batches of one epoch from an offset on: all workers yield equally many.

        Raises:
            UserError: a shard is missing or damaged.
        """
        groups = self.manifest.row_groups("train")
        rows, lanes = epoch_order([group.rows for group in groups], self.seed, epoch)
        starts = range(offset, len(rows), self.batch_size)
        parts = [slice(start, start + self.batch_size) for start in starts]
        positions = [rows_of_rank(lanes[part], self.rank, self.world) for part in parts]
        mine = [rows[part][places] for part, places in zip(parts, positions, strict=True)]
        readers = ThreadPoolExecutor(MAX_CONCURRENT_READS, "read")
        decoders = ThreadPoolExecutor(self.threads, "decode")
        source = _Rows(groups, mine, readers, self.pinned)
        pending: deque[tuple[Batch, list[Future[None]]]] = deque()
        try:
            for number in range(len(parts)):
                for later in range(
                    number + len(pending), min(number + PREFETCH_BATCHES + 1, len(parts))
                ):
                    images, labels, work = source.fetch(later, decoders)
                    count = len(rows[parts[later]])
                    batch = Batch(images, labels, positions[later], starts[later], count)
                    pending.append((batch, work))
                for piece in pending[0][1]:
                    piece.result()
                source.drop(number)
                yield pending.popleft()[0]
        finally:
            # In this order, or a decoder could wait for ever for a group that nobody reads.
            readers.shutdown(cancel_futures=True)
            decoders.shutdown(cancel_futures=True)


class _Group(NamedTuple):
    """The two columns of a row group, as NumPy sees Arrow's memory."""

    data: NDArray[np.uint8]
    """All images, one behind the other."""
    bounds: NDArray[np.int32]
    """Where each image starts in ``data``, and where the last one ends."""
    labels: NDArray[np.int32]


def _read(group: RowGroup) -> _Group:
    table = read_row_group(group, ["image", "label"])
    (images,) = table["image"].chunks
    _, bounds, data = images.buffers()
    return _Group(
        np.frombuffer(data, np.uint8),
        np.frombuffer(bounds, np.int32)[images.offset : images.offset + len(images) + 1],
        table["label"].to_numpy(),
    )


class _Rows:
    """Rows by number; each row group is read ahead of its first use and held until its last."""

    def __init__(
        self,
        groups: list[RowGroup],
        uses: list[NDArray[np.int64]],
        readers: ThreadPoolExecutor,
        pinned: bool,
    ) -> None:
        """``uses`` are the rows of each batch."""
        self.groups = groups
        self.readers = readers
        self.pinned = pinned
        ends = np.cumsum([group.rows for group in groups])
        starts = ends - [group.rows for group in groups]
        sizes = [len(part) for part in uses]
        rows = np.concatenate([np.empty(0, np.int64), *uses])
        of_row = np.searchsorted(ends, rows, side="right")
        cuts = np.cumsum(sizes)[:-1]
        self.group_of = np.split(of_row, cuts)
        self.place_of = np.split(rows - starts[of_row], cuts)
        # Of equal indices, the last assignment stays.
        batch_of = np.repeat(np.arange(len(uses)), sizes)
        self.last_use = np.full(len(groups), -1)
        self.last_use[of_row] = batch_of
        first_row = np.full(len(groups), len(rows))
        first_row[of_row[::-1]] = np.arange(len(rows))[::-1]
        by_use = np.argsort(first_row)[: np.count_nonzero(first_row < len(rows))]
        self.unread = deque(by_use.tolist())
        self.needed = np.searchsorted(batch_of[first_row[by_use]], np.arange(len(uses)), "right")
        """How many groups the batches up to each one need."""
        self.reads = 0
        self.held: dict[int, Future[_Group]] = {}

    def fetch(
        self, number: int, decoders: ThreadPoolExecutor
    ) -> tuple[Tensor, Tensor, list[Future[None]]]:
        """Images and labels of a batch, and the work that fills them; to be asked for in order."""
        while self.unread and (
            self.reads < self.needed[number] or len(self.held) < MAX_CACHED_ROW_GROUPS
        ):
            group = self.unread.popleft()
            self.held[group] = self.readers.submit(_read, self.groups[group])
            self.reads += 1
        groups, places = self.group_of[number].tolist(), self.place_of[number].tolist()
        shape = (len(groups), IMAGE_SIZE, IMAGE_SIZE, 3)
        # Torch keeps pinned memory for the next batch; getting it anew is slow.
        images = (
            torch.empty(shape, dtype=torch.uint8, pin_memory=True)
            if self.pinned
            else torch.from_numpy(np.empty(shape, np.uint8))
        )
        pixels = images.numpy()
        labels = np.empty(len(groups), np.int64)
        held = {group: self.held[group] for group in set(groups)}

        def fill(start: int) -> None:
            for index in range(start, min(start + DECODE_CHUNK, len(groups))):
                group = held[groups[index]].result()
                begin, end = group.bounds[places[index] : places[index] + 2]
                try:
                    decode_into(group.data[begin:end], pixels[index])
                except ValueError as error:
                    raise UserError(
                        f"{self.groups[groups[index]].path}: one of the images can't be decoded "
                        f"({error}); run pipelines/preprocess.py --verify"
                    ) from error
                labels[index] = group.labels[places[index]]

        work = [decoders.submit(fill, start) for start in range(0, len(groups), DECODE_CHUNK)]
        return images, torch.from_numpy(labels), work

    def drop(self, number: int) -> None:
        """Forget the groups that no batch after this one needs."""
        for group in set(self.group_of[number].tolist()):
            if self.last_use[group] == number:
                del self.held[group]
