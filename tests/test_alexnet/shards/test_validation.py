"""Validation batches: every row once and in order, read ahead, with the loader's threads."""

import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from factories import loader_of

from alexnet.errors import CorruptShardError
from alexnet.shards import validation
from alexnet.shards.codec import decode_into, read_images
from alexnet.shards.manifest import Manifest
from alexnet.shards.validation import validation_batches


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_every_row_is_in_the_batches_of_one_worker(dataset: Manifest, world_size: int) -> None:
    images, labels = {}, {}
    for number, group in enumerate(dataset.row_groups("val")):
        table = pq.ParquetFile(group.path).read_row_group(group.number)
        labels[number] = table["label"].to_pylist()
        images[number] = np.empty((group.rows, 256, 256, 3), np.uint8)
        for row, stored in enumerate(table["image"].to_pylist()):
            decode_into(np.frombuffer(stored, np.uint8), images[number][row])
    seen = []
    for rank in range(world_size):
        batches = list(validation_batches(loader_of(dataset, rank=rank, world_size=world_size)))
        numbers = list(range(len(images)))[rank::world_size]
        for number, batch in zip(numbers, batches, strict=True):
            np.testing.assert_array_equal(batch.images.numpy(), images[number])
            assert batch.labels.tolist() == labels[number]
            assert batch.labels.dtype == np.int64
            seen.append(number)
    assert sorted(seen) == list(range(len(images)))


def test_the_next_row_group_is_read_while_one_is_in_use(
    dataset: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[Any] = []
    decoders: set[int] = set()

    def record(group: Any, columns: list[str], threads: Any, into: Any) -> Any:
        result = read_images(group, columns, threads, into)
        decoders.add(threads._max_workers)
        read.append(group)
        return result

    monkeypatch.setattr(validation, "read_images", record)
    before = threading.active_count()
    batches = validation_batches(replace(loader_of(dataset), threads=3))
    next(batches)
    end = time.monotonic() + 60
    while len(read) < 2 and time.monotonic() < end:
        time.sleep(0.01)
    assert len(read) == 2 == len(dataset.row_groups("val"))
    assert decoders == {3}
    batches.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before


def test_a_damaged_shard_is_an_error(dataset: Manifest, tmp_path: Path) -> None:
    moved = replace(dataset, folder=str(tmp_path))
    with pytest.raises(CorruptShardError, match="the shard can't be read"):
        list(validation_batches(loader_of(moved)))
