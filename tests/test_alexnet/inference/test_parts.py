"""Parts of an output: rows, rejects, the same bytes with any number of threads, kept parts."""

import csv
import errno
import hashlib
import json
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from PIL import Image

from alexnet import storage
from alexnet.errors import UserError
from alexnet.inference.inputs import list_items
from alexnet.inference.listing import ListedPart, read_items, update_listing
from alexnet.inference.output import read_result
from alexnet.inference.parts import PartOptions, PartWriter, ahead
from alexnet.inference.reading import StoredImage, read_contents, read_if_small
from alexnet.inference.rows import Prediction, RowOptions
from alexnet.shards.codec import decode_into
from alexnet.shards.manifest import Manifest

IMAGES, BATCH, ROWS = 11, 3, 8
CLASSES = ("red", "green", "blue")


class MeanColour:
    """A model whose classes are the colours; features are the size of the batch and a constant."""

    def __init__(self, parallel: bool) -> None:
        self.parallel = parallel
        self.batches: list[int] = []
        self.busy = threading.Semaphore()
        self.at_once = 0

    def __call__(self, images: NDArray[np.uint8]) -> Prediction:
        self.batches.append(len(images))
        if not self.busy.acquire(blocking=False):
            self.at_once += 1
            self.busy.acquire()
        means = images.mean(axis=(1, 2)).astype(np.float32)
        self.busy.release()
        shares = means / means.sum(axis=1, keepdims=True)
        return Prediction(shares, np.full((len(images), 2), len(images), np.float32))


def write_image(path: Path, colour: tuple[int, int, int], **options: Any) -> None:
    Image.new("RGB", (300, 280), colour).save(path, **options)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    for number in range(IMAGES - 3):
        write_image(folder / f"{number:02d}.png", (20 * number, 100, 60))
    (folder / "90 empty.jpg").write_bytes(b"")
    (folder / "91\nline.jpg").write_bytes(b"no image")
    (folder / "92 cut.png").write_bytes((folder / "00.png").read_bytes()[:80])
    return folder


def listed(images: Path, output: Path) -> list[ListedPart]:
    return update_listing(str(output), list_items([str(images)]), ROWS)[0]


def options(output: Path, **changes: Any) -> PartOptions:
    rows = RowOptions(names=CLASSES, top_k=2, min_probability=0.0, view="ten")
    made = PartOptions(
        output=str(output),
        rows=rows,
        features=False,
        upright=True,
        text_format=None,
        thumbnails=False,
        metadata={"alexnet.model.uri": "models:/m-1"},
    )
    return replace(made, **changes)


def write(
    options: PartOptions, parts: list[ListedPart], *, threads: int = 2, parallel: bool = True
) -> MeanColour:
    model = MeanColour(parallel)
    writer = PartWriter(options, lambda: model, BATCH, threads)
    for part in parts:
        writer.write(part.number)
    return model


def rows_of(output: Path) -> list[dict[str, Any]]:
    tables = [pq.read_table(path) for path in sorted(output.glob("part-*.parquet"))]
    return [row for table in tables for row in table.to_pylist()]


def contents(output: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(output)): path.read_bytes()
        for path in output.rglob("*")
        if path.is_file()
    }


def test_each_file_is_a_row_with_its_labels_or_its_reason(images: Path, tmp_path: Path) -> None:
    parts = listed(images, tmp_path)
    write(options(tmp_path), parts)
    rows = rows_of(tmp_path)
    assert [row["path"] for row in rows] == sorted(map(str, images.iterdir()))
    for row in rows:
        data = Path(row["path"]).read_bytes()
        assert row["sha256"] == hashlib.sha256(data).hexdigest()
        assert row["view"] == "ten"
    for number, row in enumerate(rows[: IMAGES - 3]):
        values = np.array([20 * number, 100, 60], np.float32)
        best = np.argsort(-values, kind="stable")[:2]
        assert (row["status"], row["reason"]) == ("ok", None)
        assert (row["width"], row["height"]) == (300, 280)
        assert row["labels"] == best.tolist()
        assert row["names"] == [CLASSES[label] for label in best]
        assert row["probabilities"] == pytest.approx(values[best] / values.sum(), abs=1e-6)
    reasons = {Path(row["path"]).name: row["reason"].partition(":")[0] for row in rows[-3:]}
    assert reasons == {
        "90 empty.jpg": "empty",
        "91\nline.jpg": "not an image",
        "92 cut.png": "truncated",
    }
    assert all(row["status"] == "rejected" and row["labels"] == [] for row in rows[-3:])
    metadata = pq.read_schema(tmp_path / "part-000000.parquet").metadata
    assert metadata[b"alexnet.model.uri"] == b"models:/m-1"


def test_the_bytes_do_not_depend_on_threads_and_devices(images: Path, tmp_path: Path) -> None:
    results = []
    for name, threads, parallel in (("a", 1, True), ("b", 5, True), ("c", 3, False)):
        output = tmp_path / name
        parts = listed(images, output)
        model = write(options(output), parts, threads=threads, parallel=parallel)
        assert sorted(model.batches) == [2, 3, 3]
        results.append(contents(output))
    assert results[0] == results[1] == results[2]


def test_a_gpu_predicts_one_batch_at_a_time(images: Path, tmp_path: Path) -> None:
    parts = listed(images, tmp_path)
    model = MeanColour(parallel=False)
    writer = PartWriter(options(tmp_path), lambda: model, 1, 4)
    threads = [threading.Thread(target=writer.write, args=[part.number]) for part in parts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert model.at_once == 0
    assert len(model.batches) == IMAGES - 3


def test_labels_below_the_least_probability_are_left_out_and_features_are_added(
    images: Path, tmp_path: Path
) -> None:
    parts = listed(images, tmp_path)
    rows = RowOptions(names=CLASSES, top_k=9, min_probability=0.45, view="centre")
    write(options(tmp_path, rows=rows, features=True), parts)
    for row in rows_of(tmp_path):
        assert all(p >= 0.45 for p in row["probabilities"])
        assert len(row["labels"]) == len(row["names"]) == len(row["probabilities"]) < 3
        assert row["features"] == (
            None if row["status"] == "rejected" else pytest.approx([3, 3], abs=1)
        )


def test_the_result_counts_what_the_part_contains(images: Path, tmp_path: Path) -> None:
    parts = listed(images, tmp_path)
    write(options(tmp_path), parts)
    results = [read_result(str(tmp_path), part.number, part.digest) for part in parts]
    assert [result and (result.rows, result.rejected) for result in results] == [(8, 0), (3, 3)]
    assert results[0] is not None
    assert results[1] is not None
    assert results[0].labels == {"0": 3, "1": 5}
    assert sum(results[0].confidences) == 8
    assert results[1].reasons == {"empty": 1, "not an image": 1, "truncated": 1}


def damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("change", ["none", "delete", "damage", "no result", "other listing"])
def test_a_part_is_written_again_only_if_it_is_not_the_finished_one(
    images: Path, tmp_path: Path, change: str
) -> None:
    parts = listed(images, tmp_path)
    write(options(tmp_path), parts)
    before = contents(tmp_path)
    path, result = tmp_path / "part-000001.parquet", tmp_path / "_listing" / "part-000001.json"
    if change == "delete":
        path.unlink()
    elif change == "damage":
        damage(path)
    elif change == "no result":
        result.unlink()
    elif change == "other listing":
        value = json.loads(result.read_text())
        result.write_text(json.dumps(value | {"listing": "0" * 64}))
    times = {p: p.stat().st_mtime_ns for p in tmp_path.glob("part-*")}
    write(options(tmp_path), parts)
    assert contents(tmp_path) == before
    written = [p.name for p in tmp_path.glob("part-*") if p.stat().st_mtime_ns != times.get(p)]
    assert written == ([] if change == "none" else ["part-000001.parquet"])


def test_text_and_thumbnails_are_added_to_finished_parts_without_predicting(
    images: Path, tmp_path: Path
) -> None:
    parts = listed(images, tmp_path)
    write(options(tmp_path), parts)
    before = contents(tmp_path)
    model = write(options(tmp_path, text_format="jsonl", thumbnails=True), parts)
    assert model.batches == []
    kept = {name: data for name, data in contents(tmp_path).items() if name in before}
    assert {name for name in before if kept[name] != before[name]} == {
        f"_listing/part-00000{number}.json" for number in range(2)
    }
    lines = [
        json.loads(line)
        for path in sorted(tmp_path.glob("*.jsonl"))
        for line in path.read_text().splitlines()
    ]
    assert lines == rows_of(tmp_path)
    jpegs = pq.read_table(tmp_path / "_thumbnails" / "part-000001.parquet")["jpeg"].to_pylist()
    assert all(jpeg.startswith(b"\xff\xd8") for jpeg in jpegs)
    assert len(jpegs) == 3


def test_csv_keeps_names_with_line_breaks_and_lists(images: Path, tmp_path: Path) -> None:
    write(options(tmp_path, text_format="csv"), listed(images, tmp_path))
    rows = [
        row
        for path in sorted(tmp_path.glob("*.csv"))
        for row in csv.DictReader(path.open(newline="", encoding="utf-8"))
    ]
    expected = rows_of(tmp_path)
    assert [row["path"] for row in rows] == [row["path"] for row in expected]
    assert [json.loads(row["names"]) for row in rows] == [row["names"] for row in expected]


def test_photographs_are_turned_as_their_exif_data_says(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    (tmp_path / "in").mkdir()
    write_image(tmp_path / "in" / "a.jpg", (9, 9, 9), exif=exif)
    for upright in (True, False):
        output = tmp_path / str(upright)
        write(options(output, upright=upright), listed(tmp_path / "in", output))
        (row,) = rows_of(output)
        assert (row["width"], row["height"]) == ((280, 300) if upright else (300, 280))


def test_the_images_of_shards_are_those_of_the_shards(dataset: Manifest, tmp_path: Path) -> None:
    shard = Path(dataset.folder) / dataset.shards["val"][0].file
    parts = update_listing(str(tmp_path), list_items([str(shard)]), 100)[0]
    write(options(tmp_path), parts)
    stored = pq.read_table(shard)
    rows = rows_of(tmp_path)
    for name in ("sha256", "width", "height"):
        assert [row[name] for row in rows] == stored[name].to_pylist()
    pixels = np.empty((256, 256, 3), np.uint8)
    decode_into(np.frombuffer(stored["image"][3].as_py(), np.uint8), pixels)
    expected = pixels.mean(axis=(0, 1), dtype=np.float64)
    assert rows[3]["labels"][0] == int(expected.argmax())
    assert rows[3]["probabilities"][0] == pytest.approx(expected.max() / expected.sum(), abs=1e-5)


def items_of(path: Path, output: Path) -> list[Any]:
    update_listing(str(output), list_items([str(path)]), 100)
    return read_items(str(output), 0)[0]


@pytest.fixture
def threads() -> Iterator[Any]:
    with ThreadPoolExecutor(2) as pool:
        yield pool


def test_some_rows_of_a_parquet_file(tmp_path: Path, threads: Any) -> None:
    data = [f"{number}".encode() for number in range(100)]
    data[41] = None  # type: ignore[call-overload]
    pq.write_table(
        pa.table({"image": pa.array(data, pa.binary())}), tmp_path / "a.parquet", row_group_size=30
    )
    items = items_of(tmp_path / "a.parquet", tmp_path / "out")
    chosen = [*items[25:45], items[99]]
    read = read_contents(chosen, read_if_small, threads)
    assert read[:16] == data[25:41]
    assert read[17:] == [*data[42:45], data[99]]
    assert getattr(read[16], "reason", "") == "empty"


def test_a_damaged_page_of_a_parquet_file_rejects_its_rows(tmp_path: Path, threads: Any) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(
        pa.table({"image": [b"x" * 5000]}), path, write_page_checksum=True, compression="none"
    )
    items = items_of(path, tmp_path / "out")
    content = bytearray(path.read_bytes())
    content[2000] ^= 1
    path.write_bytes(content)
    (read,) = read_contents(items, read_if_small, threads)
    assert getattr(read, "reason", "") == "unreadable"


@pytest.mark.parametrize(
    ("change", "outcome"),
    [
        ("file deleted", "unreadable: No such file or directory"),
        ("no permission", "unreadable: Permission denied"),
        ("bad sector", "unreadable: Input/output error"),
        ("folder deleted", "can't be read any more .*finished parts are kept"),
        ("drive lost", "can't be read any more .*finished parts are kept"),
    ],
)
def test_a_lost_source_is_no_reason_to_reject(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads: Any, change: str, outcome: str
) -> None:
    path = tmp_path / "in" / "a.jpg"
    path.parent.mkdir()
    path.write_bytes(b"x")
    items = items_of(path, tmp_path / "out")
    numbers = {"no permission": errno.EACCES, "bad sector": errno.EIO, "drive lost": errno.ESTALE}
    if change in numbers:
        error = OSError(numbers[change], os.strerror(numbers[change]))

        def fail(*_: Any, **__: Any) -> Any:
            raise error

        monkeypatch.setattr("builtins.open", fail)
    else:
        path.unlink()
    if change == "folder deleted":
        path.parent.rmdir()
    if outcome.startswith("unreadable"):
        (read,) = read_contents(items, read_if_small, threads)
        assert f"{read.reason}: {read.detail}" == outcome  # type: ignore[union-attr]
        return
    with pytest.raises(UserError, match=outcome):
        read_contents(items, read_if_small, threads)


def test_a_store_that_answers_503_is_no_reason_to_reject(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads: Any
) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(b"x")
    (item,) = items_of(path, tmp_path / "out")
    item = item._replace(file="s3://bucket/a.jpg")

    def unavailable(_: str) -> bytes:
        raise OSError("AWS Error SLOW_DOWN during GetObject operation")

    monkeypatch.setattr(storage, "read_bytes", unavailable)
    with pytest.raises(UserError, match=r"s3://bucket/a\.jpg: the source can't be read any more"):
        read_contents([item], read_if_small, threads)

    def missing(path: str) -> bytes:
        raise FileNotFoundError(path)

    monkeypatch.setattr(storage, "read_bytes", missing)
    (read,) = read_contents([item], read_if_small, threads)
    assert getattr(read, "detail", "") == "no such object"


def test_a_file_too_large_to_decode_is_not_read(tmp_path: Path, threads: Any) -> None:
    with (tmp_path / "a.jpg").open("wb") as file:
        file.truncate(2**40)
    write(options(tmp_path / "out"), listed(tmp_path / "a.jpg", tmp_path / "out"))
    (row,) = rows_of(tmp_path / "out")
    assert row["reason"].startswith("unsupported: 1,099,511,627,776 bytes, the limit is ")


def test_a_full_disk_leaves_no_half_written_part(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = listed(images, tmp_path)
    write(options(tmp_path), parts[:1])
    before = contents(tmp_path)

    def full(*_: Any) -> Any:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            write(options(tmp_path), parts)
    assert contents(tmp_path) == before
    write(options(tmp_path), parts)
    assert len(rows_of(tmp_path)) == IMAGES


def test_at_most_some_values_are_computed_ahead_and_their_order_is_kept(threads: Any) -> None:
    started: list[int] = []

    def work(number: int) -> int:
        started.append(number)
        return -number

    values = ahead(threads, work, iter(range(20)), 3)
    assert next(values) == 0
    assert len(started) <= 4
    assert list(values) == [-number for number in range(1, 20)]


def test_a_stored_image_is_told_from_bytes(dataset: Manifest, tmp_path: Path, threads: Any) -> None:
    shard = Path(dataset.folder) / dataset.shards["val"][0].file
    (read, *_) = read_contents(items_of(shard, tmp_path), read_if_small, threads)
    assert isinstance(read, StoredImage)
