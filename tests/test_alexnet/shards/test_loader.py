"""Rows of real shards, in order, once; for any number of workers and threads."""

import shutil
import threading
import time
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from factories import JPEG
from numpy.typing import NDArray
from PIL import Image

from alexnet.errors import UserError
from alexnet.shards import loader
from alexnet.shards.codec import decode_into, encode
from alexnet.shards.format import SCHEMA, Manifest, RowGroup, Shard, read_row_group, write_shard
from alexnet.shards.loader import Batch, ShardLoader, _Group
from alexnet.shards.order import epoch_order

SHARDS = (150, 70)
"""Rows; row groups hold 64, so the sizes are 64, 64, 22, 64 and 6."""
ROWS = sum(SHARDS)


def colour_of(row: int) -> tuple[int, int, int]:
    return row, 255 - row, (7 * row) % 256


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """220 plain images, each of a colour of its own; the label is the row's number, reversed."""
    folder = tmp_path_factory.mktemp("wide")
    made, row = [], 0
    for number, count in enumerate(SHARDS):
        rows = []
        for _ in range(count):
            picture = BytesIO()
            Image.new("RGB", (256, 256), colour_of(row)).save(picture, "JPEG", quality=95)
            rows.append(
                {
                    "key": f"train/{row}",
                    "label": ROWS - 1 - row,
                    "wnid": "n01",
                    "image": picture.getvalue(),
                    "width": 256,
                    "height": 256,
                    "sha256": "",
                }
            )
            row += 1
        name = f"train/part-{number:05d}.parquet"
        table = pa.Table.from_pylist(rows, schema=SCHEMA)
        groups = (table.slice(start, 64) for start in range(0, count, 64))
        made.append(write_shard(str(folder), name, groups))
    return Manifest(
        folder=str(folder),
        digest="",
        source="",
        form="folders",
        settings={},
        labels=(),
        shards={"train": tuple(made), "val": ()},
        rejected={},
        files={},
    )


def stored_rows(manifest: Manifest) -> tuple[list[NDArray[np.uint8]], list[int]]:
    """Every training image and label, read with pyarrow and Pillow alone."""
    found, labels = [], []
    for shard in manifest.shards["train"]:
        table = pq.read_table(Path(manifest.folder) / shard.file)
        labels += table["label"].to_pylist()
        found += [np.asarray(Image.open(BytesIO(data))) for data in table["image"].to_pylist()]
    return found, labels


def reader_of(
    manifest: Manifest, size: int = 48, *, rank: int = 0, world: int = 1, threads: int = 2
) -> ShardLoader:
    return ShardLoader(
        manifest=manifest, batch_size=size, seed=11, rank=rank, world=world, threads=threads
    )


def same(first: Sequence[Batch], second: Sequence[Batch]) -> bool:
    return len(first) == len(second) and all(
        torch.equal(a.images, b.images)
        and torch.equal(a.labels, b.labels)
        and np.array_equal(a.positions, b.positions)
        and (a.offset, a.rows) == (b.offset, b.rows)
        for a, b in zip(first, second, strict=True)
    )


def workers() -> list[str]:
    names = [thread.name for thread in threading.enumerate()]
    return [name for name in names if name.startswith(("read", "decode"))]


@pytest.mark.parametrize("size", [1, 48, 220, 500])
def test_every_stored_row_comes_once_in_the_order_given(wide: Manifest, size: int) -> None:
    stored, labels = stored_rows(wide)
    order, _ = epoch_order([64, 64, 22, 64, 6], 11, 2)
    assert sorted(order.tolist()) == list(range(ROWS))
    seen = 0
    for batch in reader_of(wide, size).epoch(2):
        assert batch.offset == seen
        assert batch.rows == len(batch.labels) == min(size, ROWS - seen)
        assert sorted(batch.positions.tolist()) == list(range(batch.rows))
        assert (batch.images.dtype, batch.labels.dtype) == (torch.uint8, torch.int64)
        for image, label, position in zip(
            batch.images, batch.labels, batch.positions.tolist(), strict=True
        ):
            row = int(order[seen + position])
            assert int(label) == labels[row]
            assert np.array_equal(image.numpy(), stored[row])
        seen += batch.rows
    assert seen == ROWS


def test_photographs_and_rejects(dataset: Manifest) -> None:
    stored, labels = stored_rows(dataset)
    assert len(stored) == 39
    left = {image.tobytes(): label for image, label in zip(stored, labels, strict=True)}
    for batch in reader_of(dataset, 8).epoch(0):
        for image, label in zip(batch.images, batch.labels, strict=True):
            assert left.pop(image.numpy().tobytes()) == int(label)
    assert not left


def test_resuming_equals_continuing(wide: Manifest) -> None:
    unbroken = list(reader_of(wide).epoch(1))
    for done in range(len(unbroken) + 1):
        assert same(list(reader_of(wide).epoch(1, done * 48)), unbroken[done:])


@pytest.mark.parametrize("world", [2, 3, 7])
def test_workers_together_equal_one(wide: Manifest, world: int) -> None:
    alone = list(reader_of(wide, 73).epoch(4))
    readers = [reader_of(wide, 73, rank=rank, world=world).epoch(4) for rank in range(world)]
    for whole, *parts in zip(alone, *readers, strict=True):
        assert {(part.offset, part.rows) for part in parts} == {(whole.offset, whole.rows)}
        positions = np.concatenate([part.positions for part in parts])
        back = torch.from_numpy(np.argsort(positions))
        whole_back = torch.from_numpy(np.argsort(whole.positions))
        pixels = torch.cat([part.images for part in parts])
        labels = torch.cat([part.labels for part in parts])
        assert sorted(positions.tolist()) == list(range(whole.rows))
        assert torch.equal(pixels[back], whole.images[whole_back])
        assert torch.equal(labels[back], whole.labels[whole_back])


def test_more_workers_than_rows_are_left(wide: Manifest) -> None:
    # 220 rows in batches of 73 leave one for the last batch.
    parts = [list(reader_of(wide, 73, rank=rank, world=3).epoch(4, 219)) for rank in range(3)]
    assert [len(part) for part in parts] == [1, 1, 1]
    assert sorted(len(part[0].labels) for part in parts) == [0, 0, 1]
    assert {tuple(part[0].images.shape[1:]) for part in parts} == {(256, 256, 3)}


def test_threads_change_nothing(wide: Manifest) -> None:
    assert same(
        list(reader_of(wide, threads=1).epoch(0)), list(reader_of(wide, threads=5).epoch(0))
    )


def test_a_row_group_is_read_once(wide: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[RowGroup] = []
    original = read_row_group

    def count(group: RowGroup, columns: list[str]) -> pa.Table:
        read.append(group)
        return original(group, columns)

    monkeypatch.setattr(loader, "read_row_group", count)
    list(reader_of(wide, 16).epoch(0))
    assert len(read) == 5
    assert set(read) == set(wide.row_groups("train"))


def test_closing_early_stops_the_threads(wide: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded = []

    def count(stored: NDArray[np.uint8], image: NDArray[np.uint8]) -> None:
        decode_into(stored, image)
        decoded.append(1)

    monkeypatch.setattr(loader, "decode_into", count)
    epoch = reader_of(wide, 16).epoch(0)
    assert isinstance(next(epoch), Batch)
    assert workers()
    ahead = 16 * (1 + loader.PREFETCH_BATCHES)  # The batch in use and those behind it.
    deadline = time.monotonic() + 30
    while len(decoded) < ahead and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.3)
    assert len(decoded) == ahead
    assert isinstance(epoch, Iterator)
    epoch.close()  # type: ignore[attr-defined]
    assert not workers()
    assert len(decoded) == ahead


class SlowStore:
    """Row groups of rows that hold nothing but their number; every read waits for permission."""

    def __init__(self) -> None:
        self.asked: list[RowGroup] = []
        self.under_way = self.most_at_once = 0
        self.open = threading.Event()
        self.changed = threading.Condition()

    def read(self, group: RowGroup, columns: list[str]) -> pa.Table:
        with self.changed:
            self.asked.append(group)
            self.under_way += 1
            self.most_at_once = max(self.most_at_once, self.under_way)
            self.changed.notify_all()
        assert self.open.wait(30)
        with self.changed:
            self.under_way -= 1
        return pa.table(
            {
                "image": pa.array([b"x"] * group.rows, pa.binary()),
                "label": pa.array([group.number] * group.rows, pa.int32()),
            }
        )

    def wait_for(self, count: int) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.asked) >= count, 30)


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[SlowStore]:
    slow = SlowStore()
    monkeypatch.setattr(loader, "read_row_group", slow.read)
    monkeypatch.setattr(loader, "decode_into", lambda stored, image: None)
    yield slow
    slow.open.set()


def many_groups(manifest: Manifest, count: int) -> Manifest:
    """A manifest that names shards of one row group each."""
    made = tuple(Shard(f"train/{number}", 64, 0, "") for number in range(count))
    return replace(manifest, shards={"train": made, "val": ()})


def groups_in_order(manifest: Manifest) -> list[str]:
    """The path of the row group of each row of the epoch."""
    groups = manifest.row_groups("train")
    rows, _ = epoch_order([group.rows for group in groups], 11, 0)
    return [groups[row // 64].path for row in rows.tolist()]


def test_row_groups_of_a_slow_store_are_asked_for_together(
    wide: Manifest, store: SlowStore
) -> None:
    manifest = many_groups(wide, 100)
    epoch = reader_of(manifest, 48).epoch(0)
    first: list[Batch] = []
    consumer = threading.Thread(target=lambda: first.append(next(epoch)))
    consumer.start()
    store.wait_for(loader.MAX_CONCURRENT_READS)  # None has been answered yet.
    assert not first
    assert {group.path for group in store.asked} <= set(groups_in_order(manifest)[:48])
    store.open.set()
    consumer.join()
    assert len(first) == 1
    # While the first batch is in use, those of the next ones and of the next windows are read.
    store.wait_for(loader.MAX_CACHED_ROW_GROUPS)
    assert store.most_at_once == loader.MAX_CONCURRENT_READS
    epoch.close()  # type: ignore[attr-defined]
    assert not workers()


@pytest.mark.parametrize("size", [16, 128])
def test_reading_keeps_a_bounded_distance(wide: Manifest, store: SlowStore, size: int) -> None:
    manifest = many_groups(wide, 300)
    last = {path: place for place, path in enumerate(groups_in_order(manifest))}
    store.open.set()
    for batch in reader_of(manifest, size).epoch(0):
        seen = batch.offset + batch.rows
        held = [group for group in list(store.asked) if last[group.path] >= seen]
        assert len(held) <= loader.MAX_CACHED_ROW_GROUPS
    assert sorted(group.path for group in store.asked) == sorted(last)


def test_a_batch_may_need_more_groups_than_are_held(wide: Manifest, store: SlowStore) -> None:
    store.open.set()
    assert [batch.rows for batch in reader_of(many_groups(wide, 150), 4200).epoch(0)] == [
        4200,
        4200,
        1200,
    ]


def test_groups_are_let_go_after_their_last_row(
    wide: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive: list[weakref.ref[NDArray[np.uint8]]] = []
    original = loader._read

    def watch(group: RowGroup) -> _Group:
        read = original(group)
        alive.append(weakref.ref(read.data))
        return read

    monkeypatch.setattr(loader, "_read", watch)
    epoch = reader_of(wide, 16).epoch(0)
    order, _ = epoch_order([64, 64, 22, 64, 6], 11, 0)
    group_of = np.searchsorted(np.cumsum([64, 64, 22, 64, 6]), order, side="right")
    for batch in epoch:
        left = set(group_of[batch.offset + batch.rows :].tolist())
        deadline = time.monotonic() + 30
        while sum(ref() is not None for ref in alive) > len(left) and time.monotonic() < deadline:
            time.sleep(0.001)  # A thread may still be putting the last piece away.
        assert sum(ref() is not None for ref in alive) <= len(left)
    assert len(alive) == 5


def test_no_thread_survives_an_epoch(wide: Manifest) -> None:
    list(reader_of(wide).epoch(0))
    assert not workers()


def damaged_copy(manifest: Manifest, folder: Path) -> tuple[Manifest, Path]:
    shutil.copytree(manifest.folder, folder, dirs_exist_ok=True)
    return replace(manifest, folder=str(folder)), folder / manifest.shards["train"][0].file


@pytest.mark.parametrize("damage", ["truncated", "overwritten", "rotten", "missing", "empty"])
def test_a_damaged_shard_is_named(wide: Manifest, tmp_path: Path, damage: str) -> None:
    copy, shard = damaged_copy(wide, tmp_path)
    data = shard.read_bytes()
    if damage == "missing":
        shard.unlink()
    else:
        half = len(data) // 2
        contents = {
            "truncated": data[:half],
            "overwritten": data[:half] + bytes(half),
            "rotten": data[:half] + bytes(50) + data[half + 50 :],
            "empty": b"",
        }
        shard.write_bytes(contents[damage])
    with pytest.raises(UserError) as caught:
        list(reader_of(copy).epoch(0))
    assert str(caught.value).startswith(str(shard))
    assert "preprocess.py --verify" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not workers()


@pytest.mark.parametrize("broken", ["small", "cut", "nothing"])
def test_an_image_that_cannot_be_decoded_is_named(
    wide: Manifest, tmp_path: Path, broken: str
) -> None:
    """The shard is sound Parquet: some other program wrote it."""
    copy, shard = damaged_copy(wide, tmp_path)
    table = pq.read_table(shard)
    rows = table.to_pylist()
    small = encode(np.zeros((64, 64, 3), np.uint8), JPEG)
    data = {"small": small, "cut": rows[70]["image"][:400], "nothing": b""}
    rows[70]["image"] = data[broken]
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), shard, row_group_size=64)
    with pytest.raises(UserError, match="can't be decoded") as caught:
        list(reader_of(copy).epoch(0))
    assert str(caught.value).startswith(str(shard))
    assert "preprocess.py --verify" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not workers()


@pytest.mark.parametrize("change", ["no images", "other type", "fewer rows"])
def test_a_shard_of_another_kind_is_named(wide: Manifest, tmp_path: Path, change: str) -> None:
    copy, shard = damaged_copy(wide, tmp_path)
    table = pq.read_table(shard)
    if change == "no images":
        table = table.drop_columns(["image"])
    elif change == "other type":
        table = table.set_column(3, "image", table["image"].cast(pa.large_binary()))
    else:
        table = table.slice(0, 149)
    pq.write_table(table, shard, row_group_size=64)
    with pytest.raises(UserError, match="can't be read") as caught:
        list(reader_of(copy).epoch(0))
    assert str(caught.value).startswith(str(shard))
    assert "preprocess.py --verify" in str(caught.value)
    assert "\n" not in str(caught.value)
