"""From raw images to shards: counts, rejects, repeatable bytes, resuming, verification."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from io import BytesIO
from pathlib import Path
from typing import Any

import duckdb
import factories
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from source_layouts import image_data_set, replace_val_images_by_links, write_archives

from alexnet.errors import CorruptDatasetError, MissingDatasetError, UserError
from alexnet.shards.codec import Encoding
from alexnet.shards.decode import Decoded, decode
from alexnet.shards.finalize import corrupt_shards, finished_results
from alexnet.shards.format import SPLITS, STATISTICS, Shard, read_row_group
from alexnet.shards.manifest import MANIFEST, Manifest, read_manifest
from alexnet.shards.plan import ShardTask, parts_folder, plan_digest, plan_path, write_plan
from alexnet.shards.write import make_shard
from alexnet.sources.read import read_source
from pipelines.preprocessing.worker import ShardWriter


def rows_of(folder: Path, split: str) -> list[dict[str, Any]]:
    files = sorted((folder / split).glob("*.parquet"))
    rows: list[dict[str, Any]] = pa.concat_tables(map(pq.read_table, files)).to_pylist()
    return rows


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.parquet")}


def test_the_manifest_describes_the_files(dataset: Manifest) -> None:
    folder = Path(dataset.folder)
    assert (dataset.rows("train"), dataset.rows("val")) == (39, 12)
    assert dataset.rejected == {"train": 1, "val": 0}
    for split, count in (("train", 5), ("val", 2)):
        assert len(dataset.shards[split]) == count
        for shard in dataset.shards[split]:
            data = (folder / shard.file).read_bytes()
            assert shard.bytes == len(data)
            assert shard.sha256 == hashlib.sha256(data).hexdigest()
            assert shard.rows == pq.read_metadata(folder / shard.file).num_rows
    value = json.loads((folder / "manifest.json").read_text())
    assert value["images"] == {"train": 39, "val": 12}
    assert read_manifest(str(folder)) == dataset
    assert not Path(parts_folder(dataset.folder)).exists()
    groups = dataset.row_groups("train")
    assert sum(group.rows for group in groups) == 39
    for group in groups:
        assert read_row_group(group, ["key"]).num_rows == group.rows


def test_every_decodable_image_is_in_one_row(raw_images: Path, dataset: Manifest) -> None:
    for split in ("train", "val"):
        rows = rows_of(Path(dataset.folder), split)
        files = {f"{split}/{p.parent.name}/{p.name}": p for p in raw_images.glob(f"{split}/*/*")}
        files.pop(factories.BROKEN, None)
        assert sorted(row["key"] for row in rows) == sorted(files)
        for row in rows:
            original = files[row["key"]].read_bytes()
            assert row["sha256"] == hashlib.sha256(original).hexdigest()
            assert row["wnid"] == files[row["key"]].parent.name == factories.CLASSES[row["label"]]
            assert (row["width"], row["height"]) == Image.open(files[row["key"]]).size
            decoded = decode(original)
            assert isinstance(decoded, Decoded)
            stored = np.asarray(Image.open(BytesIO(row["image"])))
            # JPEG of quality 95 with chroma subsampling.
            difference = stored.astype(np.float64) - decoded.pixels
            assert np.abs(difference).mean() < 2


def test_rejects_have_a_reason(dataset: Manifest) -> None:
    rejects = pq.read_table(Path(dataset.folder) / "rejects.parquet")
    assert rejects.column_names == ["key", "split", "reason", "detail"]
    (reject,) = rejects.to_pylist()
    assert (reject["key"], reject["split"], reject["reason"]) == (
        factories.BROKEN,
        "train",
        "truncated",
    )
    assert reject["detail"]


def test_pandas_reads_a_shard(dataset: Manifest) -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.read_parquet(Path(dataset.folder) / dataset.shards["val"][0].file)
    assert list(frame.columns) == ["key", "label", "wnid", "image", "width", "height", "sha256"]
    assert str(frame["label"].dtype) == "int32"
    assert Image.open(BytesIO(frame["image"][0])).size == (256, 256)


def test_duckdb_reads_the_shards(dataset: Manifest) -> None:
    query = f"""
        SELECT wnid, count(*), min(octet_length(image)), min(width), max(height)
        FROM '{dataset.folder}/train/*.parquet' GROUP BY wnid ORDER BY wnid
    """
    result_rows = duckdb.connect().execute(query).fetchall()
    rows = rows_of(Path(dataset.folder), "train")
    for wnid, count, size, width, height in result_rows:
        of_class = [row for row in rows if row["wnid"] == wnid]
        assert count == len(of_class)
        assert size == min(len(row["image"]) for row in of_class)
        assert width == min(row["width"] for row in of_class)
        assert height == max(row["height"] for row in of_class)
    assert [wnid for wnid, *_ in result_rows] == list(factories.CLASSES)


@pytest.mark.parametrize("encoding", [factories.JPEG, factories.RAW])
def test_the_order_of_tasks_does_not_change_the_bytes(
    raw_images: Path, tmp_path: Path, encoding: Encoding
) -> None:
    manifests = []
    for name, step in (("first", 1), ("second", -1)):
        tasks = factories.plan(raw_images, tmp_path / name, encoding=encoding)
        for task in tasks[::step]:
            make_shard(task)
        manifests.append(factories.finalize_dataset(raw_images, tmp_path / name, tasks))
    assert bytes_of(tmp_path / "first") == bytes_of(tmp_path / "second")
    assert manifests[0] == replace(manifests[1], folder=str(tmp_path / "first"))
    assert manifests[0].content_digest() == manifests[1].content_digest()
    first, second = (np.load(tmp_path / name / STATISTICS) for name in ("first", "second"))
    for name in first:
        np.testing.assert_array_equal(first[name], second[name])


def test_raw_rows_contain_the_pixels(raw_images: Path, tmp_path: Path) -> None:
    task = factories.plan(raw_images, tmp_path, encoding=factories.RAW)[-1]
    make_shard(task)
    for row in pq.read_table(tmp_path / task.file).to_pylist():
        decoded = decode((raw_images / row["key"]).read_bytes())
        assert isinstance(decoded, Decoded)
        assert row["image"] == decoded.pixels.tobytes()


def test_the_seed_determines_the_shuffle(raw_images: Path, tmp_path: Path) -> None:
    def keys(name: str, seed: int) -> list[str]:
        factories.plan(raw_images, tmp_path / name, seed=seed)
        plan = pq.read_table(plan_path(str(tmp_path / name)))
        keys_in_order: list[str] = plan["key"].to_pylist()
        return keys_in_order

    first = keys("a", 0)
    assert first == keys("b", 0)
    assert first != keys("c", 1)
    assert sorted(first) == sorted(keys("c", 1))
    assert len(set(first)) == 52
    train = [key for key in first if key.startswith("train")]
    assert first[:40] == train != sorted(train)
    # The first shard is a random sample with several classes.
    assert len({key.split("/")[1] for key in train[:8]}) > 1


def test_tasks_cover_the_plan(raw_images: Path, tmp_path: Path) -> None:
    tasks = factories.plan(raw_images, tmp_path, rows_per_shard=15)
    assert [(t.split, t.number, t.row_group, t.rows) for t in tasks] == [
        ("train", 0, 0, 15),
        ("train", 1, 1, 15),
        ("train", 2, 2, 10),
        ("val", 0, 3, 12),
    ]
    plan = pq.ParquetFile(plan_path(str(tmp_path)))
    for task in tasks:
        rows = plan.read_row_group(task.row_group)
        assert rows.num_rows == task.rows
        assert set(rows["split"].to_pylist()) == {task.split}


def test_finished_shards_are_kept(raw_images: Path, tmp_path: Path) -> None:
    tasks = factories.plan(raw_images, tmp_path)
    assert finished_results(str(tmp_path), tasks) == {}
    for task in tasks[:3]:
        make_shard(task)
    done = finished_results(str(tmp_path), tasks)
    assert list(done) == tasks[:3]
    assert [done[task].shard.rows + len(done[task].rejects) for task in done] == [8, 8, 8]
    times = {task.file: os.stat(tmp_path / task.file).st_mtime_ns for task in tasks[:3]}
    # The next run writes the plan again and executes only the missing tasks.
    assert factories.plan(raw_images, tmp_path) == tasks
    for task in tasks:
        if task not in done:
            make_shard(task)
    assert all(os.stat(tmp_path / name).st_mtime_ns == time for name, time in times.items())
    assert factories.finalize_dataset(raw_images, tmp_path, tasks).rows("train") == 39


def test_a_lost_actors_shard_is_not_written_again(raw_images: Path, tmp_path: Path) -> None:
    source = read_source(str(raw_images))
    task = write_plan(str(tmp_path), source, factories.RAW, rows_per_shard=16, seed=0)[0]
    row = {"number": 7, "task": asdict(task)}
    done = {"number": 7, "error": b""}
    path = tmp_path / task.file
    assert ShardWriter()(row) == done
    written = path.stat().st_mtime_ns
    assert ShardWriter()(row) == done
    assert path.stat().st_mtime_ns == written
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    assert ShardWriter()(row) == done
    assert path.read_bytes() == content
    path.unlink()
    assert ShardWriter()(row) == done
    assert path.read_bytes() == content


def test_incomplete_files_are_deleted(raw_images: Path, tmp_path: Path) -> None:
    tasks = factories.plan(raw_images, tmp_path)
    for task in tasks:
        make_shard(task)
    incomplete = tmp_path / "val" / "part-00000.parquet.0123.tmp"
    incomplete.write_bytes(b"PAR1")
    factories.finalize_dataset(raw_images, tmp_path, tasks)
    assert not incomplete.exists()
    assert len(list(tmp_path.glob("*/*.parquet"))) == len(tasks)


def remove_shard(folder: Path, task: ShardTask) -> None:
    (folder / task.file).unlink()


def remove_result(folder: Path, task: ShardTask) -> None:
    Path(task.result_path).unlink()


def truncate_shard(folder: Path, task: ShardTask) -> None:
    path = folder / task.file
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize("damage", [remove_shard, remove_result, truncate_shard])
def test_the_task_of_a_damaged_shard_is_not_finished(
    raw_images: Path, tmp_path: Path, damage: Callable[[Path, ShardTask], None]
) -> None:
    task = factories.plan(raw_images, tmp_path)[0]
    make_shard(task)
    before = (tmp_path / task.file).read_bytes()
    assert finished_results(str(tmp_path), [task])
    damage(tmp_path, task)
    assert not finished_results(str(tmp_path), [task])
    make_shard(task)
    assert finished_results(str(tmp_path), [task])
    assert (tmp_path / task.file).read_bytes() == before


def test_a_task_with_rejects_only_is_finished_without_a_shard(
    raw_images: Path, tmp_path: Path
) -> None:
    raw = tmp_path / "raw"
    shutil.copytree(raw_images, raw)
    tasks = factories.plan(raw, tmp_path / "shards", rows_per_shard=1)
    results = [make_shard(task) for task in tasks]
    empty = [task for task, result in zip(tasks, results, strict=True) if not result.shard.rows]
    assert len(empty) == 1
    assert finished_results(str(tmp_path / "shards"), empty)
    assert not (tmp_path / "shards" / empty[0].file).exists()
    manifest = factories.finalize_dataset(raw, tmp_path / "shards", tasks)
    assert (manifest.rows("train"), manifest.rejected["train"]) == (39, 1)
    assert len(manifest.row_groups("train")) == 39


def test_a_missing_file_is_a_reject(raw_images: Path, tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    shutil.copytree(raw_images, raw)
    tasks = factories.plan(raw, tmp_path / "shards")
    missing = raw / "val" / "n03" / "n03_1.JPEG"
    missing.unlink()
    results = [make_shard(task) for task in tasks]
    rejects = {r["key"]: r["reason"] for result in results for r in result.rejects}
    assert rejects == {factories.BROKEN: "truncated", "val/n03/n03_1.JPEG": "unreadable"}


def test_a_link_in_an_archive_is_its_file_or_a_reject(tmp_path: Path) -> None:
    raw, data = tmp_path / "raw", image_data_set()
    write_archives(raw, data)
    replace_val_images_by_links(raw, data)
    tasks = [task for task in factories.plan(raw, tmp_path) if task.split == "val"]
    (result,) = [make_shard(task) for task in tasks]
    assert result.rejects == (
        {
            "key": "val/v_3.JPEG",
            "split": "val",
            "reason": "unreadable",
            "detail": "it leads to a file that does not exist",
        },
    )
    images = {row["key"]: (row["wnid"], row["sha256"]) for row in rows_of(tmp_path, "val")}
    sha256 = {name: hashlib.sha256(content).hexdigest() for name, content in data.val.items()}
    assert images == {
        "val/v_1.JPEG": (data.val_wnids["v_1"], sha256["v_1"]),
        "val/v_2.JPEG": (data.val_wnids["v_2"], sha256["v_1"]),
        "val/v_4.JPEG": (data.val_wnids["v_4"], sha256["v_4"]),
    }


def test_a_missing_source_is_an_error(raw_images: Path, tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    shutil.copytree(raw_images, raw)
    tasks = factories.plan(raw, tmp_path / "shards")
    shutil.rmtree(raw)
    with pytest.raises(UserError, match=r"can't be read any more .* finished shards are kept"):
        make_shard(tasks[0])
    assert not finished_results(str(tmp_path / "shards"), tasks)


def test_a_file_too_large_for_an_image_is_not_read(raw_images: Path, tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    shutil.copytree(raw_images, raw)
    path = raw / "val" / "n03" / "n03_1.JPEG"
    os.truncate(path, 2**40)  # A sparse file: it takes no space on the disk, but would in memory.
    tasks = factories.plan(raw, tmp_path / "shards")
    results = [make_shard(task) for task in tasks if task.split == "val"]
    ((reject,),) = [result.rejects for result in results if result.rejects]
    assert (reject["key"], reject["reason"]) == ("val/n03/n03_1.JPEG", "unsupported")
    assert "1,099,511,627,776 bytes" in reject["detail"]


def test_corrupt_shards_are_found_by_their_sha256(raw_images: Path, tmp_path: Path) -> None:
    tasks = factories.plan(raw_images, tmp_path)
    for task in tasks:
        make_shard(task)
    manifest = factories.finalize_dataset(raw_images, tmp_path, tasks)
    assert corrupt_shards(manifest) == []
    shard = manifest.shards["train"][2]
    path = tmp_path / shard.file
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(data)
    missing = manifest.shards["val"][0]
    (tmp_path / missing.file).unlink()
    hashed: list[Shard] = []
    assert corrupt_shards(manifest, hashed.append) == [shard, missing]
    assert hashed == [each for split in SPLITS for each in manifest.shards[split]]
    Path(manifest.statistics_path).write_bytes(b"")
    with pytest.raises(CorruptDatasetError, match=r"statistics\.npz: is missing or damaged"):
        corrupt_shards(manifest)


def test_a_split_without_a_decodable_image_is_an_error(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    for split in ("train", "val"):
        folder = raw / split / "n01"
        folder.mkdir(parents=True)
        Image.new("RGB", (300, 300)).save(folder / "valid.png")
    (raw / "val" / "n01" / "valid.png").write_bytes(b"no image")
    tasks = factories.plan(raw, tmp_path / "shards")
    for task in tasks:
        make_shard(task)
    with pytest.raises(UserError, match=r"val/n01/valid\.png, is rejected as not an image"):
        factories.finalize_dataset(raw, tmp_path / "shards", tasks)
    assert not (tmp_path / "shards" / MANIFEST).exists()


def test_the_plan_digest_depends_on_images_and_settings(raw_images: Path, tmp_path: Path) -> None:
    settings = {"encoding": "jpeg", "seed": 0}
    raw = tmp_path / "copy"
    shutil.copytree(raw_images, raw)
    digest = plan_digest(read_source(str(raw_images)), settings)
    assert len(digest) == 16
    assert int(digest, 16) >= 0

    def digest_of_copy(changed: dict[str, Any] | None = None) -> str:
        return plan_digest(read_source(str(raw)), changed or settings)

    assert digest_of_copy() == digest, "the path does not matter"
    assert digest_of_copy({"seed": 0, "encoding": "jpeg"}) == digest
    assert digest_of_copy({"encoding": "raw", "seed": 0}) != digest
    assert digest_of_copy({"encoding": "jpeg", "seed": 1}) != digest
    image = raw / "train" / "n01" / "n01_1.JPEG"
    image.write_bytes(image.read_bytes() + b"\0")
    longer = digest_of_copy()
    assert longer != digest
    image.write_bytes(image.read_bytes()[:-1])
    assert digest_of_copy() == digest
    image.rename(image.with_name("n01_x.JPEG"))
    assert digest_of_copy() not in (digest, longer)


@pytest.mark.parametrize("text", ["", "{}", '{"format": 0}', "[]"])
def test_a_damaged_or_missing_manifest_is_an_error(tmp_path: Path, text: str) -> None:
    path = tmp_path / MANIFEST
    path.write_text(text)
    with pytest.raises(CorruptDatasetError, match=str(path)):
        read_manifest(str(tmp_path))
    path.unlink()
    with pytest.raises(MissingDatasetError, match=f"{path}: no such manifest"):
        read_manifest(str(tmp_path))


def test_the_content_digest_depends_on_the_shards_bytes(dataset: Manifest) -> None:
    first = dataset.shards["train"][0]
    changed = {
        **dataset.shards,
        "train": (replace(first, sha256="0"), *dataset.shards["train"][1:]),
    }
    other = replace(dataset, shards=changed)
    assert other.content_digest() != dataset.content_digest()
    assert other.content_digest("val") == dataset.content_digest("val")
    assert other.content_digest("train") != dataset.content_digest("train")
    assert (
        replace(dataset, folder="other", plan_digest="").content_digest()
        == dataset.content_digest()
    )
