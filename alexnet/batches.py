"""Shard rows → batches of decoded images, in the order that ``order`` gives.

Row groups are read when the first of their rows is due and dropped after the last; images are
decoded by threads (the codecs release Python's lock) while the network computes. The result is
the same for any number of threads.
"""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from alexnet.images import SIDE, decode_stored
from alexnet.order import epoch_order, rows_of_rank
from alexnet.shards import Manifest, RowGroup, read_row_group

AHEAD = 2
"""Batches that are prepared while one is in use."""


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
class Reader:
    """A worker's view of the training rows; every worker of a run has the same but its rank."""

    manifest: Manifest
    batch_size: int
    """Rows in a global batch; the epoch's last one may be smaller."""
    seed: int
    rank: int = 0
    world: int = 1
    threads: int = 2

    def epoch(self, epoch: int, offset: int = 0) -> Iterator[Batch]:
        """The batches of one epoch from an offset on: all workers yield equally many."""
        groups = self.manifest.row_groups("train")
        rows, lanes = epoch_order([group.rows for group in groups], self.seed, epoch)
        parts = []
        for start in range(offset, len(rows), self.batch_size):
            part = slice(start, start + self.batch_size)
            positions = rows_of_rank(lanes[part], self.rank, self.world)
            parts.append((start, len(rows[part]), positions, rows[part][positions]))
        source = _Rows(groups, [part[-1] for part in parts])
        # One thread reads and gathers, in order; a pool of others decodes.
        with (
            ThreadPoolExecutor(1, "batches") as gatherer,
            ThreadPoolExecutor(self.threads, "decode") as decoders,
        ):
            pending: list[Future[Batch]] = []

            def prepare(number: int) -> Batch:
                start, count, positions, _ = parts[number]
                stored, labels = source.fetch(number)
                return Batch(decode_all(stored, decoders), labels, positions, start, count)

            try:
                for number in range(len(parts)):
                    while len(pending) <= AHEAD and number + len(pending) < len(parts):
                        pending.append(gatherer.submit(prepare, number + len(pending)))
                    yield pending.pop(0).result()
            finally:
                for future in pending:
                    future.cancel()


def decode_all(stored: list[pa.Buffer], pool: ThreadPoolExecutor) -> Tensor:
    """Stored images → (n, 256, 256, 3) uint8."""
    images = np.empty((len(stored), SIDE, SIDE, 3), np.uint8)

    def decode(index: int) -> None:
        images[index] = decode_stored(stored[index])

    list(pool.map(decode, range(len(stored))))
    return torch.from_numpy(images)


class _Rows:
    """Rows by number, each row group held from its first use to its last."""

    def __init__(self, groups: list[RowGroup], uses: list[NDArray[np.int64]]) -> None:
        self.groups = groups
        self.ends = np.cumsum([group.rows for group in groups])
        self.uses = uses
        self.last = {
            int(group): number
            for number, rows in enumerate(uses)
            for group in np.unique(self._group_of(rows))
        }
        self.held: dict[int, pa.Table] = {}

    def fetch(self, number: int) -> tuple[list[pa.Buffer], Tensor]:
        """Stored images and labels of one batch; batches are asked for in order."""
        rows = self.uses[number]
        stored, labels = [], np.empty(len(rows), np.int64)
        for place, (row, group) in enumerate(zip(rows, self._group_of(rows), strict=True)):
            table = self._table(int(group))
            inner = int(row - (self.ends[group] - self.groups[group].rows))
            stored.append(table["image"][inner].as_buffer())
            labels[place] = table["label"][inner].as_py()
        self.held = {g: table for g, table in self.held.items() if self.last[g] > number}
        return stored, torch.from_numpy(labels)

    def _group_of(self, rows: NDArray[np.int64]) -> NDArray[np.intp]:
        return np.searchsorted(self.ends, rows, side="right")

    def _table(self, group: int) -> pa.Table:
        if group not in self.held:
            self.held[group] = read_row_group(self.groups[group], ["image", "label"])
        return self.held[group]
