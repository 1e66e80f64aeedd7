"""Every row once and in order, for any number of workers and threads; errors for bad shards."""

import shutil
import threading
import time
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from factories import JPEG
from numpy.typing import NDArray
from PIL import Image

from alexnet.errors import CorruptShardError
from alexnet.shards import loader, pieces, read_ahead, row_groups
from alexnet.shards.codec import decode_into, encode
from alexnet.shards.format import SCHEMA, RowGroup, Shard, write_shard
from alexnet.shards.loader import Batch, ShardLoader
from alexnet.shards.manifest import Manifest
from alexnet.shards.order import ShuffleRows, epoch_order
from alexnet.shards.row_groups import RowGroupData, RowGroupReader

SHARDS = (150, 70)
"""Rows of each shard. Row groups have 64, so their sizes are 64, 64, 22, 64 and 6."""
ROWS = sum(SHARDS)


def colour_of(row: int) -> tuple[int, int, int]:
    return row, 255 - row, (7 * row) % 256


@pytest.fixture(scope="module")
def coloured(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """220 images, each of a single, different colour; labels count down from 219 to 0."""
    folder = tmp_path_factory.mktemp("coloured")
    shards, row = [], 0
    for number, count in enumerate(SHARDS):
        rows = []
        for _ in range(count):
            buffer = BytesIO()
            Image.new("RGB", (256, 256), colour_of(row)).save(buffer, "JPEG", quality=95)
            rows.append(
                {
                    "key": f"train/{row}",
                    "label": ROWS - 1 - row,
                    "wnid": "n01",
                    "image": buffer.getvalue(),
                    "width": 256,
                    "height": 256,
                    "sha256": "",
                }
            )
            row += 1
        name = f"train/part-{number:05d}.parquet"
        table = pa.Table.from_pylist(rows, schema=SCHEMA)
        groups = (table.slice(start, 64) for start in range(0, count, 64))
        shards.append(write_shard(str(folder), name, groups))
    return Manifest(
        folder=str(folder),
        plan_digest="",
        source="",
        layout="folders",
        settings={},
        labels=(),
        shards={"train": tuple(shards), "val": ()},
        rejected={},
        files={},
    )


def stored_rows(manifest: Manifest) -> tuple[list[NDArray[np.uint8]], list[int]]:
    """Every training image and label, read with pyarrow and Pillow."""
    images, labels = [], []
    for shard in manifest.shards["train"]:
        table = pq.read_table(Path(manifest.folder) / shard.file)
        labels += table["label"].to_pylist()
        images += [np.asarray(Image.open(BytesIO(data))) for data in table["image"].to_pylist()]
    return images, labels


def loader_of(
    manifest: Manifest,
    size: int = 48,
    *,
    rank: int = 0,
    world_size: int = 1,
    threads: int = 2,
    reshuffle: bool = True,
    shuffle_rows: ShuffleRows = "windows",
) -> ShardLoader:
    return ShardLoader(
        manifest=manifest,
        batch_size=size,
        seed=11,
        reshuffle=reshuffle,
        shuffle_rows=shuffle_rows,
        rank=rank,
        world_size=world_size,
        threads=threads,
    )


def are_equal(first: Sequence[Batch], second: Sequence[Batch]) -> bool:
    return len(first) == len(second) and all(
        torch.equal(a.images, b.images)
        and torch.equal(a.labels, b.labels)
        and np.array_equal(a.positions, b.positions)
        and (a.offset, a.rows) == (b.offset, b.rows)
        for a, b in zip(first, second, strict=True)
    )


def pool_threads() -> list[str]:
    names = [thread.name for thread in threading.enumerate()]
    return [name for name in names if name.startswith(("read", "decode"))]


@pytest.mark.parametrize("size", [1, 48, 220, 500])
@pytest.mark.parametrize("shuffle_rows", get_args(ShuffleRows))
def test_every_stored_row_is_loaded_once_in_order(
    coloured: Manifest, size: int, shuffle_rows: ShuffleRows
) -> None:
    stored, labels = stored_rows(coloured)
    order, _ = epoch_order([64, 64, 22, 64, 6], 11, 2, shuffle_rows)
    assert sorted(order.tolist()) == list(range(ROWS))
    offset = 0
    for batch in loader_of(coloured, size, shuffle_rows=shuffle_rows).epoch(2):
        assert batch.offset == offset
        assert batch.rows == len(batch.labels) == min(size, ROWS - offset)
        assert sorted(batch.positions.tolist()) == list(range(batch.rows))
        assert (batch.images.dtype, batch.labels.dtype) == (torch.uint8, torch.int64)
        for image, label, position in zip(
            batch.images, batch.labels, batch.positions.tolist(), strict=True
        ):
            row = int(order[offset + position])
            assert int(label) == labels[row]
            assert np.array_equal(image.numpy(), stored[row])
        offset += batch.rows
    assert offset == ROWS


def test_all_images_of_a_data_set_with_rejects_are_loaded(dataset: Manifest) -> None:
    stored, labels = stored_rows(dataset)
    assert len(stored) == 39
    missing = {image.tobytes(): label for image, label in zip(stored, labels, strict=True)}
    for batch in loader_of(dataset, 8).epoch(0):
        for image, label in zip(batch.images, batch.labels, strict=True):
            assert missing.pop(image.numpy().tobytes()) == int(label)
    assert not missing


@pytest.mark.parametrize("reshuffle", [True, False])
@pytest.mark.parametrize("shuffle_rows", get_args(ShuffleRows))
def test_a_resumed_epoch_equals_an_uninterrupted_one(
    coloured: Manifest, reshuffle: bool, shuffle_rows: ShuffleRows
) -> None:
    loader = loader_of(coloured, reshuffle=reshuffle, shuffle_rows=shuffle_rows)
    uninterrupted = list(loader.epoch(1))
    for done in range(len(uninterrupted) + 1):
        assert are_equal(list(loader.epoch(1, done * 48)), uninterrupted[done:])


def test_epochs_have_the_same_batches_only_without_reshuffling(coloured: Manifest) -> None:
    once, reshuffled = (loader_of(coloured, reshuffle=value) for value in (False, True))
    first = list(reshuffled.epoch(0))
    assert not are_equal(list(reshuffled.epoch(7)), first)
    for epoch in (0, 1, 7):
        assert are_equal(list(once.epoch(epoch)), first)


@pytest.mark.parametrize("world_size", [2, 3, 7])
def test_the_workers_parts_make_up_the_batches_of_one_worker(
    coloured: Manifest, world_size: int
) -> None:
    single = list(loader_of(coloured, 73).epoch(4))
    epochs = [
        loader_of(coloured, 73, rank=rank, world_size=world_size).epoch(4)
        for rank in range(world_size)
    ]
    for whole, *parts in zip(single, *epochs, strict=True):
        assert {(part.offset, part.rows) for part in parts} == {(whole.offset, whole.rows)}
        positions = np.concatenate([part.positions for part in parts])
        order = torch.from_numpy(np.argsort(positions))
        whole_order = torch.from_numpy(np.argsort(whole.positions))
        pixels = torch.cat([part.images for part in parts])
        labels = torch.cat([part.labels for part in parts])
        assert sorted(positions.tolist()) == list(range(whole.rows))
        assert torch.equal(pixels[order], whole.images[whole_order])
        assert torch.equal(labels[order], whole.labels[whole_order])


def test_a_batch_can_have_fewer_rows_than_workers(coloured: Manifest) -> None:
    # The last of the batches of 73 has 1 of 220 rows.
    parts = [
        list(loader_of(coloured, 73, rank=rank, world_size=3).epoch(4, 219)) for rank in range(3)
    ]
    assert [len(part) for part in parts] == [1, 1, 1]
    assert sorted(len(part[0].labels) for part in parts) == [0, 0, 1]
    assert {tuple(part[0].images.shape[1:]) for part in parts} == {(256, 256, 3)}


def test_the_number_of_threads_does_not_change_the_batches(coloured: Manifest) -> None:
    assert are_equal(
        list(loader_of(coloured, threads=1).epoch(0)), list(loader_of(coloured, threads=5).epoch(0))
    )


def test_a_row_group_is_read_once(coloured: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    groups: list[RowGroup] = []
    original = RowGroupReader.read

    def count(reader: RowGroupReader, group: RowGroup, *how: Any, **more: Any) -> RowGroupData:
        groups.append(group)
        return original(reader, group, *how, **more)

    monkeypatch.setattr(RowGroupReader, "read", count)
    list(loader_of(coloured, 16).epoch(0))
    assert len(groups) == 5
    assert set(groups) == set(coloured.row_groups("train"))


def test_if_all_rows_are_shuffled_each_image_is_read_when_it_is_used(
    coloured: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = loader_of(coloured, 16, shuffle_rows="all")
    first = list(images.epoch(0))
    read: list[int] = []
    monkeypatch.setattr(row_groups, "make_resident", lambda *_: pytest.fail("a whole row group"))
    monkeypatch.setattr(pieces, "make_resident", lambda image, path: read.append(len(image)))
    again = list(images.epoch(0))
    assert are_equal(again, first)
    assert len(read) == ROWS

    def fail(image: NDArray[np.uint8], path: str) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(pieces, "make_resident", fail)
    with pytest.raises(CorruptShardError, match=r"part.*\.parquet: can't be read \(.*Input/output"):
        next(images.epoch(0))


def test_closing_early_stops_the_threads(
    coloured: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded = []

    def count(stored: NDArray[np.uint8], image: NDArray[np.uint8]) -> None:
        decode_into(stored, image)
        decoded.append(1)

    monkeypatch.setattr(loader, "decode_into", count)
    epoch = loader_of(coloured, 16).epoch(0)
    assert isinstance(next(epoch), Batch)
    assert pool_threads()
    expected = 16 * (1 + loader.PREFETCH_BATCHES)  # The batch in use and the prefetched ones.
    deadline = time.monotonic() + 30
    while len(decoded) < expected and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.3)
    assert len(decoded) == expected
    assert isinstance(epoch, Iterator)
    epoch.close()  # type: ignore[attr-defined]
    assert not pool_threads()
    assert len(decoded) == expected


def test_all_threads_have_work_if_batches_are_small(
    coloured: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads, meeting = 12, threading.Barrier(12)

    def meet(stored: NDArray[np.uint8], image: NDArray[np.uint8]) -> None:
        meeting.wait(30)  # Raises an error unless all threads decode at the same time.
        decoded.append(1)

    decoded: list[int] = []
    monkeypatch.setattr(loader, "decode_into", meet)
    batches = loader_of(coloured, 4, threads=threads).epoch(0)
    next(batches)
    assert len(decoded) >= 4
    meeting.abort()
    with pytest.raises(threading.BrokenBarrierError):
        list(batches)


class SlowStore:
    """A replacement of ``read_row_group``; reads return only after ``open`` is set."""

    def __init__(self) -> None:
        self.requested: list[RowGroup] = []
        self.running = self.max_running = 0
        self.open = threading.Event()
        self.changed = threading.Condition()

    def read(self, group: RowGroup, columns: list[str], *, verify: bool) -> pa.Table:
        with self.changed:
            self.requested.append(group)
            self.running += 1
            self.max_running = max(self.max_running, self.running)
            self.changed.notify_all()
        assert self.open.wait(30)
        with self.changed:
            self.running -= 1
        return pa.table(
            {
                "image": pa.array([b"x"] * group.rows, pa.binary()),
                "label": pa.array([group.number] * group.rows, pa.int32()),
            }
        )

    def wait_for(self, count: int) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.requested) >= count, 30)


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[SlowStore]:
    slow = SlowStore()
    monkeypatch.setattr(row_groups, "read_row_group", slow.read)
    monkeypatch.setattr(loader, "decode_into", lambda stored, image: None)
    yield slow
    slow.open.set()


def many_groups(manifest: Manifest, count: int) -> Manifest:
    """A manifest of shards with one row group each."""
    shards = tuple(Shard(f"train/{number}", 64, 0, "") for number in range(count))
    return replace(manifest, shards={"train": shards, "val": ()})


def groups_in_order(manifest: Manifest) -> list[str]:
    """The path of the row group of each row of the epoch."""
    groups = manifest.row_groups("train")
    rows, _ = epoch_order([group.rows for group in groups], 11, 0)
    return [groups[row // 64].path for row in rows.tolist()]


def test_row_groups_of_a_slow_store_are_requested_concurrently(
    coloured: Manifest, store: SlowStore
) -> None:
    manifest = many_groups(coloured, 100)
    epoch = loader_of(manifest, 48).epoch(0)
    first: list[Batch] = []
    consumer = threading.Thread(target=lambda: first.append(next(epoch)))
    consumer.start()
    store.wait_for(read_ahead.MAX_CONCURRENT_READS)  # None has returned yet.
    assert not first
    assert {group.path for group in store.requested} <= set(groups_in_order(manifest)[:48])
    store.open.set()
    consumer.join()
    assert len(first) == 1
    # While the first batch is in use, row groups of the next batches and windows are read.
    store.wait_for(loader.MAX_CACHED_ROW_GROUPS)
    assert store.max_running == read_ahead.MAX_CONCURRENT_READS
    epoch.close()  # type: ignore[attr-defined]
    assert not pool_threads()


@pytest.mark.parametrize("size", [16, 128])
def test_the_number_of_row_groups_read_ahead_is_bounded(
    coloured: Manifest, store: SlowStore, size: int
) -> None:
    manifest = many_groups(coloured, 300)
    last = {path: position for position, path in enumerate(groups_in_order(manifest))}
    store.open.set()
    for batch in loader_of(manifest, size).epoch(0):
        done = batch.offset + batch.rows
        cached = [group for group in list(store.requested) if last[group.path] >= done]
        assert len(cached) <= loader.MAX_CACHED_ROW_GROUPS
    assert sorted(group.path for group in store.requested) == sorted(last)


def test_a_batch_can_need_more_groups_than_the_cache_holds(
    coloured: Manifest, store: SlowStore
) -> None:
    store.open.set()
    assert [batch.rows for batch in loader_of(many_groups(coloured, 150), 4200).epoch(0)] == [
        4200,
        4200,
        1200,
    ]


def test_row_groups_are_freed_after_their_last_row(
    coloured: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(row_groups, "MAX_KEPT_MAPS", 0)
    references: list[weakref.ref[NDArray[np.uint8]]] = []
    original = RowGroupReader.read

    def watch(reader: RowGroupReader, group: RowGroup, *how: Any, **more: Any) -> RowGroupData:
        data = original(reader, group, *how, **more)
        references.append(weakref.ref(data.data))
        return data

    monkeypatch.setattr(RowGroupReader, "read", watch)
    epoch = loader_of(coloured, 16).epoch(0)
    order, _ = epoch_order([64, 64, 22, 64, 6], 11, 0)
    group_of = np.searchsorted(np.cumsum([64, 64, 22, 64, 6]), order, side="right")
    for batch in epoch:
        needed = set(group_of[batch.offset + batch.rows :].tolist())
        deadline = time.monotonic() + 30
        while (
            sum(ref() is not None for ref in references) > len(needed)
            and time.monotonic() < deadline
        ):
            time.sleep(0.001)  # A thread may still hold its last row group.
        assert sum(ref() is not None for ref in references) <= len(needed)
    assert len(references) == 5


def test_the_memory_of_batches_is_used_again(coloured: Manifest) -> None:
    used = set()
    for batch in loader_of(coloured, 4).epoch(0):
        used.add(batch.images.data_ptr())
        del batch
    assert len(used) <= 2 + loader.PREFETCH_BATCHES


def test_the_threads_end_with_the_epoch(coloured: Manifest) -> None:
    list(loader_of(coloured).epoch(0))
    assert not pool_threads()


def copy_dataset(manifest: Manifest, folder: Path) -> tuple[Manifest, Path]:
    shutil.copytree(manifest.folder, folder, dirs_exist_ok=True)
    return replace(manifest, folder=str(folder)), folder / manifest.shards["train"][0].file


@pytest.mark.parametrize("damage", ["truncated", "overwritten", "changed", "missing", "empty"])
def test_the_error_names_a_damaged_shard(coloured: Manifest, tmp_path: Path, damage: str) -> None:
    copy, shard = copy_dataset(coloured, tmp_path)
    data = shard.read_bytes()
    if damage == "missing":
        shard.unlink()
    else:
        half = len(data) // 2
        contents = {
            "truncated": data[:half],
            "overwritten": data[:half] + bytes(half),
            "changed": data[:half] + bytes(50) + data[half + 50 :],
            "empty": b"",
        }
        shard.write_bytes(contents[damage])
    with pytest.raises(CorruptShardError) as caught:
        list(loader_of(copy).epoch(0))
    assert str(caught.value).startswith(str(shard))
    assert "\n" not in str(caught.value)
    assert not pool_threads()


@pytest.mark.parametrize("content", ["smaller", "truncated", "empty"])
def test_the_error_names_the_shard_of_an_undecodable_image(
    coloured: Manifest, tmp_path: Path, content: str
) -> None:
    """The shard is valid Parquet, written by another program."""
    copy, shard = copy_dataset(coloured, tmp_path)
    table = pq.read_table(shard)
    rows = table.to_pylist()
    smaller = encode(np.zeros((64, 64, 3), np.uint8), JPEG)
    images = {"smaller": smaller, "truncated": rows[70]["image"][:400], "empty": b""}
    rows[70]["image"] = images[content]
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), shard, row_group_size=64)
    with pytest.raises(CorruptShardError, match="can't be decoded") as caught:
        list(loader_of(copy).epoch(0))
    assert str(caught.value).startswith(str(shard))
    assert "\n" not in str(caught.value)
    assert not pool_threads()


@pytest.mark.parametrize("change", ["no images", "other type", "fewer rows"])
def test_the_error_names_a_shard_with_another_schema(
    coloured: Manifest, tmp_path: Path, change: str
) -> None:
    copy, shard = copy_dataset(coloured, tmp_path)
    table = pq.read_table(shard)
    if change == "no images":
        table = table.drop_columns(["image"])
    elif change == "other type":
        table = table.set_column(3, "image", table["image"].cast(pa.large_binary()))
    else:
        table = table.slice(0, 149)
    pq.write_table(table, shard, row_group_size=64)
    with pytest.raises(CorruptShardError, match="can't be read") as caught:
        list(loader_of(copy).epoch(0))
    assert str(caught.value).startswith(str(shard))
    assert "\n" not in str(caught.value)
