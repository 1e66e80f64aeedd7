"""Validation rows → decoded images, one row group after the other, in order.

While the network computes, the next row groups are read and decoded, with the threads of the
training's loader and into pinned memory if that has it.
"""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from torch import Tensor

from alexnet.shards.codec import read_images
from alexnet.shards.loader import PREFETCH_BATCHES, ShardLoader, empty_images


class ValidationBatch(NamedTuple):
    """A row group of the validation split, b images."""

    images: Tensor
    """(b, 256, 256, 3) uint8."""
    labels: NDArray[np.int64]
    """(b,)."""


def validation_batches(loader: ShardLoader) -> Iterator[ValidationBatch]:
    """The row groups of a worker's part of the validation split.

    Raises:
        CorruptShardError: a shard is missing or damaged.
    """
    groups = loader.manifest.row_groups("val")[loader.rank :: loader.world_size]
    readers = ThreadPoolExecutor(PREFETCH_BATCHES, "read")
    decoders = ThreadPoolExecutor(loader.threads, "decode")
    pending: deque[tuple[Tensor, Future[tuple[pa.Table, NDArray[np.uint8]]]]] = deque()
    try:
        for number in range(len(groups)):
            for group in groups[number + len(pending) : number + PREFETCH_BATCHES + 1]:
                # Allocated in this thread: others have another current GPU.
                images = empty_images(group.rows, pin_memory=loader.pin_memory)
                read = readers.submit(read_images, group, ["label"], decoders, images.numpy())
                pending.append((images, read))
            images, read = pending.popleft()
            table, _ = read.result()
            yield ValidationBatch(images, table["label"].to_numpy().astype(np.int64))
    finally:
        # Readers first: they wait for decoders.
        readers.shutdown(cancel_futures=True)
        decoders.shutdown(cancel_futures=True)
