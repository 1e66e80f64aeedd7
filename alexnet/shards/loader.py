"""Shard rows → batches of images, or of crops, in the order that ``order`` computes.

Two pools of threads work while the network computes: ``read_ahead`` reads row groups before their
first row is needed, the other decodes images into the batches, some at a time, and can crop them at
once (codecs, copies and crops release Python's global lock). The result does not depend on the
number of threads.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from alexnet.errors import CorruptShardError
from alexnet.recipes import IMAGE_SIZE
from alexnet.shards.buffers import BufferPool
from alexnet.shards.codec import decode_into
from alexnet.shards.format import RowGroup
from alexnet.shards.gpu_decode import decode_on_gpu
from alexnet.shards.manifest import Manifest
from alexnet.shards.order import LANES, WINDOW, ShuffleRows, epoch_order, rows_of_rank
from alexnet.shards.pieces import Addresses, Piece
from alexnet.shards.read_ahead import ReadAhead, StoredRows
from alexnet.shards.row_groups import RowGroupReader, Verify

PREFETCH_BATCHES = 2
"""Batches that are prepared while one is in use, at least."""

IMAGES_PER_THREAD = 2
"""Images in preparation for each thread, at least: all have work also if batches are small."""

MAX_CACHED_ROW_GROUPS = 2 * LANES * WINDOW
"""Row groups that are kept, unless the batches in preparation need more. All lanes begin their next
window at about the same time, and by then the row groups of that window should have been read."""

PIECE = 16
"""Images that a thread decodes in one task, at most; fewer if a batch has too few for all."""

RAW_PIECE = 64
"""As ``PIECE``, for raw images: a task takes a tenth of the time."""

Pixels = NDArray[np.uint8]
SHAPE = IMAGE_SIZE, IMAGE_SIZE, 3


class BatchRows(NamedTuple):
    """One worker's part of a global batch, b images."""

    positions: NDArray[np.int64]
    """(b,): index of each image within the global batch."""
    offset: int
    """Rows of the epoch before this global batch."""
    rows: int
    """Rows in the global batch."""


WriteCrops = Callable[[int, Addresses], None]
"""Writes the crops of some consecutive images of a batch: the index of the first one, and where
the images are during the call. It is called in several threads at the same time."""

StartCrops = Callable[[BatchRows], tuple[Tensor, WriteCrops]]
"""Returns a batch's crops, (b, ...), and the function that writes them."""


class Batch(NamedTuple):
    """One worker's part of a global batch, b images."""

    images: Tensor
    """(b, 256, 256, 3) uint8, or the crops if the loader makes them."""
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
    shuffle_rows: ShuffleRows = "windows"
    """Which rows are shuffled together; ``"all"`` keeps all row groups, which should be mapped."""
    rank: int = 0
    world_size: int = 1
    microbatches: int | None = None
    """Into how many a global batch is divided, which are not divided further among workers."""
    threads: int = 2
    """Threads that decode."""
    pin_memory: bool = False
    """Whether batches are in pinned memory, from which a GPU can copy asynchronously."""
    decode_on: torch.device | None = None
    """A GPU that decodes the training images, all of them JPEGs; None for the CPU."""
    verify: Verify = "once"
    """When the pages of the training shards are compared with their checksums."""
    reader: RowGroupReader = field(default_factory=RowGroupReader, init=False, compare=False)
    whole_images: BufferPool[np.uint8] = field(
        default_factory=lambda: BufferPool(SHAPE, np.uint8), init=False, compare=False
    )
    """The memory of batches that are not pinned."""

    def epoch(
        self, epoch: int, offset: int = 0, start_crops: StartCrops | None = None
    ) -> Iterator[Batch]:
        """The batches of one epoch, starting at an offset; all workers yield the same number.

        The memory of a batch is used again when nothing refers to it any more.

        Args:
            epoch: from 0.
            offset: rows of the epoch to skip.
            start_crops: makes crops while images are decoded; by default batches have whole images.

        Raises:
            CorruptShardError: a shard is missing or damaged.
        """
        groups = self.manifest.row_groups("train")
        # (all rows,) each: the epoch's row numbers in order, and the lane of each.
        drawn = epoch if self.reshuffle else 0
        sizes = [group.rows for group in groups]
        rows, lanes = epoch_order(sizes, self.seed, drawn, self.shuffle_rows)
        own = self.rank, self.world_size, self.microbatches
        batches = []
        batch_rows = []
        for start in range(offset, len(rows), self.batch_size):
            end = min(start + self.batch_size, len(rows))
            positions = rows_of_rank(lanes[start:end], *own)
            batches.append(BatchRows(positions, start, end - start))
            batch_rows.append(rows[start:end][positions])
        share = max(map(len, batch_rows), default=0)
        ahead = max(PREFETCH_BATCHES, -(-IMAGES_PER_THREAD * self.threads // max(share, 1)))
        by_image = self.shuffle_rows == "all"
        read = partial(self.reader.read, verify=self.verify, by_image=by_image)
        stored = ReadAhead(groups, batch_rows, read, MAX_CACHED_ROW_GROUPS)
        decoders = ThreadPoolExecutor(self.threads, "decode")
        decoding = _Decoding(self, groups, decoders, share, start_crops)
        pending: deque[tuple[Batch, list[Future[None]]]] = deque()
        try:
            for number in range(len(batches)):
                for later in range(number + len(pending), min(number + ahead + 1, len(batches))):
                    pending.append(decoding.start(batches[later], stored.fetch(later)))
                for task in pending[0][1]:
                    task.result()
                stored.drop(number)
                yield pending.popleft()[0]
        finally:
            # Readers first: decoders wait for row groups until their reads end or are cancelled.
            stored.close()
            decoders.shutdown(cancel_futures=True)


def empty_images(count: int, *, pin_memory: bool) -> Tensor:
    """(count, 256, 256, 3) uint8 on the CPU, to be overwritten."""
    shape = (count, *SHAPE)
    if pin_memory:  # Torch reuses pinned memory for later batches; to allocate it is slow.
        return torch.empty(shape, dtype=torch.uint8, pin_memory=True)
    return torch.from_numpy(np.empty(shape, np.uint8))


def _undecodable(where: str, error: ValueError) -> CorruptShardError:
    return CorruptShardError(f"{where}: an image can't be decoded ({error})")


class _Decoding:
    """Decodes the batches of an epoch, a piece of some images in each task."""

    def __init__(
        self,
        loader: ShardLoader,
        groups: Sequence[RowGroup],
        threads: ThreadPoolExecutor,
        share: int,
        start_crops: StartCrops | None,
    ) -> None:
        """``share``: images of this worker in a batch, at most."""
        self.loader = loader
        self.groups = groups
        self.threads = threads
        self.start_crops = start_crops
        most = RAW_PIECE if loader.manifest.is_raw else PIECE
        self.piece = min(max(share // loader.threads, 1), most)
        if loader.decode_on:  # It decodes many at the same time.
            self.piece = max(share, 1)
        self.of_thread = threading.local()

    def start(self, batch: BatchRows, stored: StoredRows) -> tuple[Batch, list[Future[None]]]:
        """A batch, which is complete when the futures are done."""
        count = len(stored.groups)
        labels = np.empty(count, np.int64)
        write: WriteCrops | None = None
        if self.start_crops:
            images, write = self.start_crops(batch)
        elif self.loader.pin_memory:
            images = empty_images(count, pin_memory=True)
        else:
            images = torch.from_numpy(self.loader.whole_images.take(count))

        def decode_piece(first: int) -> None:
            piece = self._find(range(first, min(first + self.piece, count)), stored)
            labels[first : first + len(piece.groups)] = piece.labels()
            if write:
                write(first, self._addresses(piece))
            elif self.loader.decode_on:
                self._decode_on_gpu(piece, images[first : first + len(piece.groups)])
            else:
                self._decode(piece, images.numpy()[first : first + len(piece.groups)])

        tasks = [self.threads.submit(decode_piece, n) for n in range(0, count, self.piece)]
        return Batch(images, torch.from_numpy(labels), *batch), tasks

    def _find(self, rows: range, stored: StoredRows) -> Piece:
        """Some rows of a batch; waits until their row groups have been read."""
        numbers = stored.groups[rows.start : rows.stop]
        read = {number: stored.reads[number].result() for number in set(numbers)}
        piece = Piece(
            [self.groups[number].path for number in numbers],
            [read[number] for number in numbers],
            stored.indices[rows.start : rows.stop],
        )
        if self.loader.shuffle_rows == "all":
            piece.make_resident()
        return piece

    def _addresses(self, piece: Piece) -> Addresses:
        """Where a piece's images are: raw ones in their shard, others decoded, of this thread."""
        if piece.is_raw():
            return piece.addresses()
        from alexnet.kernels.crop import addresses_of

        if not hasattr(self.of_thread, "images"):
            self.of_thread.images = np.empty((self.piece, *SHAPE), np.uint8)
        images: Pixels = self.of_thread.images[: len(piece.groups)]
        self._decode(piece, images)
        return addresses_of(images)

    def _decode(self, piece: Piece, images: Pixels) -> None:
        """Decode or copy a piece into ``images``, (n, 256, 256, 3)."""
        if piece.is_raw():
            from alexnet.kernels.crop import copy_images  # Imports the compiler.

            copy_images(piece.addresses(), images)
            return
        for path, image, pixels in zip(piece.paths, piece.stored(), images, strict=True):
            try:
                decode_into(image, pixels)
            except ValueError as error:
                raise _undecodable(path, error) from error

    def _decode_on_gpu(self, piece: Piece, images: Tensor) -> None:
        assert self.loader.decode_on
        try:
            decode_on_gpu(piece.stored(), images, self.loader.decode_on)
        except ValueError as error:
            raise _undecodable(" or ".join(sorted(set(piece.paths))), error) from error
