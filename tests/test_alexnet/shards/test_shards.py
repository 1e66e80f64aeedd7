"""From raw images to shards: counts, rejects, equal bytes, and resuming."""

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

from alexnet.errors import UserError
from alexnet.shards.codec import Encoding
from alexnet.shards.decode import Decoded, decode
from alexnet.shards.finalize import corrupt_shards, finished
from alexnet.shards.format import Manifest, read_manifest, read_row_group
from alexnet.shards.plan import ShardTask, plan_digest, write_plan
from alexnet.shards.write import make_shard
from alexnet.sources.read import read_source
from pipelines.preprocessing.worker import ShardWriter


def rows_of(folder: Path, split: str) -> list[dict[str, Any]]:
    files = sorted((folder / split).glob("*.parquet"))
    rows: list[dict[str, Any]] = pa.concat_tables(map(pq.read_table, files)).to_pylist()
    return rows


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.parquet")}


def test_the_manifest_counts_what_is_there(dataset: Manifest) -> None:
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
    assert not (folder / "parts").exists()
    groups = dataset.row_groups("train")
    assert sum(group.rows for group in groups) == 39
    for group in groups:
        assert read_row_group(group, ["key"]).num_rows == group.rows


def test_every_readable_image_is_in_one_row(raw_images: Path, dataset: Manifest) -> None:
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
            # JPEG of quality 95 with halved colour resolution.
            difference = stored.astype(np.float64) - decoded.pixels
            assert np.abs(difference).mean() < 2


def test_rejects_say_why(dataset: Manifest) -> None:
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
    found = duckdb.connect().execute(query).fetchall()
    rows = rows_of(Path(dataset.folder), "train")
    for wnid, count, size, width, height in found:
        mine = [row for row in rows if row["wnid"] == wnid]
        assert count == len(mine)
        assert size == min(len(row["image"]) for row in mine)
        assert width == min(row["width"] for row in mine)
        assert height == max(row["height"] for row in mine)
    assert [wnid for wnid, *_ in found] == list(factories.CLASSES)


@pytest.mark.parametrize("encoding", [factories.JPEG, factories.RAW])
def test_made_twice_in_any_order_the_bytes_are_equal(
    raw_images: Path, tmp_path: Path, encoding: Encoding
) -> None:
    manifests = []
    for name, step in (("first", 1), ("second", -1)):
        units = factories.plan(raw_images, tmp_path / name, encoding=encoding)
        for unit in units[::step]:
            make_shard(unit)
        manifests.append(factories.assemble(raw_images, tmp_path / name, units))
    assert bytes_of(tmp_path / "first") == bytes_of(tmp_path / "second")
    assert manifests[0] == replace(manifests[1], folder=str(tmp_path / "first"))
    assert manifests[0].content_digest() == manifests[1].content_digest()
    first, second = (np.load(tmp_path / name / "statistics.npz") for name in ("first", "second"))
    for name in first:
        np.testing.assert_array_equal(first[name], second[name])


def test_raw_rows_hold_the_pixels(raw_images: Path, tmp_path: Path) -> None:
    unit = factories.plan(raw_images, tmp_path, encoding=factories.RAW)[-1]
    make_shard(unit)
    for row in pq.read_table(tmp_path / unit.file).to_pylist():
        decoded = decode((raw_images / row["key"]).read_bytes())
        assert isinstance(decoded, Decoded)
        assert row["image"] == decoded.pixels.tobytes()


def test_shards_are_a_shuffle_that_the_seed_decides(raw_images: Path, tmp_path: Path) -> None:
    def keys(name: str, seed: int) -> list[str]:
        factories.plan(raw_images, tmp_path / name, seed=seed)
        plan = pq.read_table(tmp_path / name / "parts" / "plan.parquet")
        found: list[str] = plan["key"].to_pylist()
        return found

    first = keys("a", 0)
    assert first == keys("b", 0)
    assert first != keys("c", 1)
    assert sorted(first) == sorted(keys("c", 1))
    assert len(set(first)) == 52
    train = [key for key in first if key.startswith("train")]
    assert first[:40] == train != sorted(train)
    # A fair sample: the first shard has no single class.
    assert len({key.split("/")[1] for key in train[:8]}) > 1


def test_units_cover_the_plan(raw_images: Path, tmp_path: Path) -> None:
    units = factories.plan(raw_images, tmp_path, rows_per_shard=15)
    assert [(u.split, u.number, u.group, u.rows) for u in units] == [
        ("train", 0, 0, 15),
        ("train", 1, 1, 15),
        ("train", 2, 2, 10),
        ("val", 0, 3, 12),
    ]
    plan = pq.ParquetFile(tmp_path / "parts" / "plan.parquet")
    for unit in units:
        rows = plan.read_row_group(unit.group)
        assert rows.num_rows == unit.rows
        assert set(rows["split"].to_pylist()) == {unit.split}


def test_finished_shards_are_kept(raw_images: Path, tmp_path: Path) -> None:
    units = factories.plan(raw_images, tmp_path)
    assert finished(str(tmp_path), units) == {}
    for unit in units[:3]:
        make_shard(unit)
    done = finished(str(tmp_path), units)
    assert list(done) == units[:3]
    assert [done[unit].shard.rows + len(done[unit].rejects) for unit in done] == [8, 8, 8]
    times = {unit.file: os.stat(tmp_path / unit.file).st_mtime_ns for unit in units[:3]}
    # The next run plans again and makes only what is missing.
    again = factories.plan(raw_images, tmp_path)
    assert again == units
    for unit in again:
        if unit not in done:
            make_shard(unit)
    assert all(os.stat(tmp_path / name).st_mtime_ns == time for name, time in times.items())
    assert factories.assemble(raw_images, tmp_path, units).rows("train") == 39


def test_a_lost_actors_shard_is_not_made_again(raw_images: Path, tmp_path: Path) -> None:
    source = read_source(str(raw_images))
    unit = write_plan(str(tmp_path), source, factories.RAW, rows_per_shard=16, seed=0)[0]
    row = {"number": 7, "unit": asdict(unit)}
    done = {"number": 7, "source_error": "", "write_error": ""}
    path = tmp_path / unit.file
    assert ShardWriter()(row) == done
    made = path.stat().st_mtime_ns
    assert ShardWriter()(row) == done
    assert path.stat().st_mtime_ns == made
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    assert ShardWriter()(row) == done
    assert path.read_bytes() == whole
    path.unlink()
    assert ShardWriter()(row) == done
    assert path.read_bytes() == whole


def test_nothing_half_written_is_left(raw_images: Path, tmp_path: Path) -> None:
    units = factories.plan(raw_images, tmp_path)
    for unit in units:
        make_shard(unit)
    begun = tmp_path / "val" / "part-00000.parquet.0123.tmp"
    begun.write_bytes(b"PAR1")
    factories.assemble(raw_images, tmp_path, units)
    assert not begun.exists()
    assert len(list(tmp_path.glob("*/*.parquet"))) == len(units)


def remove_shard(folder: Path, unit: ShardTask) -> None:
    (folder / unit.file).unlink()


def remove_report(folder: Path, unit: ShardTask) -> None:
    Path(unit.report).unlink()


def cut_shard(folder: Path, unit: ShardTask) -> None:
    path = folder / unit.file
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize("damage", [remove_shard, remove_report, cut_shard])
def test_a_damaged_shard_is_not_done(
    raw_images: Path, tmp_path: Path, damage: Callable[[Path, ShardTask], None]
) -> None:
    unit = factories.plan(raw_images, tmp_path)[0]
    make_shard(unit)
    before = (tmp_path / unit.file).read_bytes()
    assert finished(str(tmp_path), [unit])
    damage(tmp_path, unit)
    assert not finished(str(tmp_path), [unit])
    make_shard(unit)
    assert finished(str(tmp_path), [unit])
    assert (tmp_path / unit.file).read_bytes() == before


def test_a_shard_of_rejects_alone_is_done_without_a_file(raw_images: Path, tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    shutil.copytree(raw_images, raw)
    units = factories.plan(raw, tmp_path / "shards", rows_per_shard=1)
    made = [make_shard(unit) for unit in units]
    empty = [unit for unit, report in zip(units, made, strict=True) if not report.shard.rows]
    assert len(empty) == 1
    assert finished(str(tmp_path / "shards"), empty)
    assert not (tmp_path / "shards" / empty[0].file).exists()
    manifest = factories.assemble(raw, tmp_path / "shards", units)
    assert (manifest.rows("train"), manifest.rejected["train"]) == (39, 1)
    assert len(manifest.row_groups("train")) == 39


def test_a_file_that_is_gone_is_a_reject(raw_images: Path, tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    shutil.copytree(raw_images, raw)
    units = factories.plan(raw, tmp_path / "shards")
    gone = raw / "val" / "n03" / "n03_1.JPEG"
    gone.unlink()
    reports = [make_shard(unit) for unit in units]
    rejects = {r["key"]: r["reason"] for report in reports for r in report.rejects}
    assert rejects == {factories.BROKEN: "truncated", "val/n03/n03_1.JPEG": "unreadable"}


def test_a_source_that_is_gone_is_no_reject(raw_images: Path, tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    shutil.copytree(raw_images, raw)
    units = factories.plan(raw, tmp_path / "shards")
    shutil.rmtree(raw)
    with pytest.raises(UserError, match=r"can't be read any more .* finished shards are kept"):
        make_shard(units[0])
    assert not finished(str(tmp_path / "shards"), units)


def test_a_file_too_long_for_an_image_is_not_read(raw_images: Path, tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    shutil.copytree(raw_images, raw)
    path = raw / "val" / "n03" / "n03_1.JPEG"
    os.truncate(path, 2**40)  # A hole: it takes no room on the disk, but would in memory.
    units = factories.plan(raw, tmp_path / "shards")
    reports = [make_shard(unit) for unit in units if unit.split == "val"]
    ((reject,),) = [report.rejects for report in reports if report.rejects]
    assert (reject["key"], reject["reason"]) == ("val/n03/n03_1.JPEG", "unsupported")
    assert "1,099,511,627,776 bytes" in reject["detail"]


def test_damage_is_found_by_the_bytes(raw_images: Path, tmp_path: Path) -> None:
    units = factories.plan(raw_images, tmp_path)
    for unit in units:
        make_shard(unit)
    manifest = factories.assemble(raw_images, tmp_path, units)
    assert corrupt_shards(manifest) == []
    shard = manifest.shards["train"][2]
    path = tmp_path / shard.file
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(data)
    gone = manifest.shards["val"][0]
    (tmp_path / gone.file).unlink()
    assert corrupt_shards(manifest) == [shard, gone]
    (tmp_path / "statistics.npz").write_bytes(b"")
    with pytest.raises(UserError, match=r"statistics\.npz: is gone or damaged; run .* --force"):
        corrupt_shards(manifest)


def test_a_split_without_a_readable_image_is_refused(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    for split in ("train", "val"):
        folder = raw / split / "n01"
        folder.mkdir(parents=True)
        Image.new("RGB", (300, 300)).save(folder / "sound.png")
    (raw / "val" / "n01" / "sound.png").write_bytes(b"no image")
    units = factories.plan(raw, tmp_path / "shards")
    for unit in units:
        make_shard(unit)
    with pytest.raises(UserError, match=r"val/n01/sound\.png, is rejected as not an image"):
        factories.assemble(raw, tmp_path / "shards", units)
    assert not (tmp_path / "shards" / "manifest.json").exists()


def test_the_digest_names_images_and_settings(raw_images: Path, tmp_path: Path) -> None:
    settings = {"encoding": "jpeg", "seed": 0}
    raw = tmp_path / "elsewhere"
    shutil.copytree(raw_images, raw)
    digest = plan_digest(read_source(str(raw_images)), settings)
    assert len(digest) == 16
    assert int(digest, 16) >= 0

    def elsewhere(changed: dict[str, Any] | None = None) -> str:
        return plan_digest(read_source(str(raw)), changed or settings)

    assert elsewhere() == digest, "the place does not matter"
    assert elsewhere({"seed": 0, "encoding": "jpeg"}) == digest
    assert elsewhere({"encoding": "raw", "seed": 0}) != digest
    assert elsewhere({"encoding": "jpeg", "seed": 1}) != digest
    image = raw / "train" / "n01" / "n01_1.JPEG"
    image.write_bytes(image.read_bytes() + b"\0")
    longer = elsewhere()
    assert longer != digest
    image.write_bytes(image.read_bytes()[:-1])
    assert elsewhere() == digest
    image.rename(image.with_name("n01_x.JPEG"))
    assert elsewhere() not in (digest, longer)


@pytest.mark.parametrize("text", ["", "{}", '{"format": 0}', "[]"])
def test_a_manifest_of_another_kind_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "manifest.json"
    path.write_text(text)
    with pytest.raises(UserError, match=str(path)):
        read_manifest(str(tmp_path))
    path.unlink()
    with pytest.raises(UserError, match=r"run pipelines/preprocess\.py first"):
        read_manifest(str(tmp_path))


def test_content_is_of_the_bytes(dataset: Manifest) -> None:
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
        replace(dataset, folder="elsewhere", digest="").content_digest() == dataset.content_digest()
    )
