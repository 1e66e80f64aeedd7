"""Images extracted from Parquet: the same bytes, sequential reads, little memory."""

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from source_layouts import image_data_set, write_folders, write_parquet, write_parquet_file

from alexnet import storage
from alexnet.errors import UserError
from alexnet.shards.codec import Encoding
from alexnet.shards.plan import write_plan
from alexnet.shards.write import make_shard
from alexnet.sources import parquet_extract
from alexnet.sources.index import SCHEMA
from alexnet.sources.read import Source, read_source

IMAGES = [b"one", None, b"", b"four" * 1000, b"five"]


@pytest.fixture
def parquet(tmp_path: Path) -> Path:
    """A Parquet file of five images, one of them null, one empty, in row groups of two."""
    path = tmp_path / "data" / "train-0.parquet"
    write_parquet_file(path, [(None, image, 0) for image in IMAGES], None)
    return path


def extracted(source: Source, folder: Path) -> Source:
    for path in parquet_extract.parquet_files(source.index):
        parquet_extract.extract_images(path, str(folder))
    return replace(source, index=parquet_extract.to_byte_ranges(source.index, str(folder)))


def index_of(path: Path, rows: list[int]) -> pa.Table:
    """An index of some rows of one file."""
    count = len(rows)
    values = [[str(row) for row in rows], ["train"] * count, ["n"] * count, [0] * count]
    values += [[str(path)] * count, rows, [0] * count]
    return pa.table([pa.array(v, f.type) for v, f in zip(values, SCHEMA, strict=True)], SCHEMA)


def contents(index: pa.Table) -> list[bytes]:
    return [
        storage.read_range(row["path"], row["offset"], row["size"]) for row in index.to_pylist()
    ]


def test_every_row_has_its_image(tmp_path: Path, parquet: Path) -> None:
    rows = [4, 0, 3, 1, 2, 4]
    folder = str(tmp_path / "extracted")
    assert parquet_extract.extract_images(str(parquet), folder) == sum(
        len(image or b"") for image in IMAGES
    )
    index = parquet_extract.to_byte_ranges(index_of(parquet, rows), folder)
    assert index.schema == SCHEMA
    assert contents(index) == [IMAGES[row] or b"" for row in rows]
    assert [parquet_extract.read_image(str(parquet), row) for row in rows] == contents(index)


@pytest.mark.parametrize("segment_bytes", [1, 5, 4003])
def test_the_size_of_segments_does_not_change_the_images(
    tmp_path: Path, parquet: Path, monkeypatch: pytest.MonkeyPatch, segment_bytes: int
) -> None:
    monkeypatch.setattr(parquet_extract, "SEGMENT_BYTES", segment_bytes)
    parquet_extract.extract_images(str(parquet), str(tmp_path / "extracted"))
    index = parquet_extract.to_byte_ranges(
        index_of(parquet, [0, 1, 2, 3, 4]), str(tmp_path / "extracted")
    )
    assert contents(index) == [image or b"" for image in IMAGES]
    assert len(list((tmp_path / "extracted").glob("*.bin"))) > 1


def test_extracted_images_are_not_copied_again(tmp_path: Path, parquet: Path) -> None:
    folder = tmp_path / "extracted"
    assert parquet_extract.extract_images(str(parquet), str(folder)) > 0
    times = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert parquet_extract.extract_images(str(parquet), str(folder)) == 0
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == times
    os.utime(parquet, ns=(1, 1))
    with pytest.raises(UserError, match=f"{parquet}: has changed"):
        parquet_extract.to_byte_ranges(index_of(parquet, [0]), str(folder))
    assert parquet_extract.extract_images(str(parquet), str(folder)) > 0
    assert contents(parquet_extract.to_byte_ranges(index_of(parquet, [0]), str(folder))) == [b"one"]


def test_an_interrupted_extraction_is_repeated(
    tmp_path: Path, parquet: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parquet_extract, "SEGMENT_BYTES", 1)
    original = storage.write_bytes
    written: list[str] = []

    def fail_later(path: str, data: bytes) -> None:
        if len(written) == 2:
            raise OSError(28, "No space left on device")
        written.append(path)
        original(path, data)

    monkeypatch.setattr(storage, "write_bytes", fail_later)
    folder = str(tmp_path / "extracted")
    with pytest.raises(OSError, match="No space"):
        parquet_extract.extract_images(str(parquet), folder)
    with pytest.raises(UserError):
        parquet_extract.to_byte_ranges(index_of(parquet, [0]), folder)
    monkeypatch.setattr(storage, "write_bytes", original)
    assert parquet_extract.extract_images(str(parquet), folder) > 0
    assert contents(parquet_extract.to_byte_ranges(index_of(parquet, [3]), folder)) == [IMAGES[3]]


def remove(path: Path) -> None:
    path.unlink()


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def change_byte(path: Path) -> None:
    """Change a byte of a page, so that its checksum is wrong."""
    pq.write_table(pq.read_table(path), path, compression="none", write_page_checksum=True)
    content = bytearray(path.read_bytes())
    content[content.index(b"fourfour") + 3] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [remove, truncate, change_byte])
def test_the_error_names_a_damaged_file(
    tmp_path: Path, parquet: Path, damage: Callable[[Path], None]
) -> None:
    damage(parquet)
    with pytest.raises(UserError, match=str(parquet)) as caught:
        parquet_extract.extract_images(str(parquet), str(tmp_path / "extracted"))
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.glob("extracted/*.parquet"))


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_every_file_and_row_is_replaced_by_its_range(data: st.DataObject) -> None:
    lengths = data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=4))
    kinds = [SCHEMA.field(name).type for name in ("path", "offset", "size")]
    ranges = {}
    for number, length in enumerate(lengths):
        columns = [[f"{number}-{row}" for row in range(length)], range(length), range(length)]
        arrays = [pa.array(column, kind) for column, kind in zip(columns, kinds, strict=True)]
        ranges[f"file {number}"] = pa.table(arrays, names=["path", "offset", "size"])
    pairs = [(number, row) for number, length in enumerate(lengths) for row in range(length)]
    chosen = data.draw(st.lists(st.sampled_from(pairs), max_size=12))
    index = pa.concat_tables(
        [SCHEMA.empty_table(), *(index_of(Path(f"file {n}"), [row]) for n, row in chosen)]
    )
    replaced = parquet_extract.look_up_ranges(index, ranges)
    assert replaced.schema == SCHEMA
    assert replaced["path"].to_pylist() == [f"{number}-{row}" for number, row in chosen]
    assert replaced["size"].to_pylist() == [row for _, row in chosen]
    assert replaced["key"].equals(index["key"])


def test_shards_are_equal_to_those_from_folders(tmp_path: Path) -> None:
    data = image_data_set()
    sources = {}
    for layout, write in (("folders", write_folders), ("parquet", write_parquet)):
        write(tmp_path / layout, data)
        sources[layout] = read_source(str(tmp_path / layout))
    sources["parquet"] = extracted(sources["parquet"], tmp_path / "extracted")
    made = {}
    for layout, source in sources.items():
        folder = tmp_path / "shards" / layout
        encoding = Encoding(kind="jpeg", jpeg_quality=95)
        tasks = write_plan(str(folder), source, encoding, 5, 0)
        results = [make_shard(task) for task in tasks]
        made[layout] = {task.file: (folder / task.file).read_bytes() for task in tasks}
        (reject,) = [reject for result in results for reject in result.rejects]
        assert reject["key"] == "train/n02/n02_1.JPEG"
    assert made["parquet"] == made["folders"]


def test_an_image_that_is_null_is_rejected_as_empty(tmp_path: Path, parquet: Path) -> None:
    write_parquet_file(parquet.with_name("validation-0.parquet"), [("v", b"x", 0)], None)
    source = extracted(read_source(str(parquet.parent)), tmp_path / "extracted")
    encoding = Encoding(kind="jpeg", jpeg_quality=95)
    task = write_plan(str(tmp_path / "shards"), source, encoding, 9, 0)[0]
    rejects = make_shard(task).rejects
    assert sorted(reject["reason"] for reject in rejects) == ["empty"] * 2 + ["not an image"] * 3


@pytest.mark.slow
def test_memory_does_not_depend_on_the_size_of_a_row_group(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    path = tmp_path / "large.parquet"
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    rows = [{"bytes": random.bytes(200_000), "path": None} for _ in range(800)]
    table = pa.table({"image": pa.array(rows, image)})
    # The writer checks the size of a page only after each of its batches.
    pq.write_table(table, path, row_group_size=10_000, write_batch_size=5)
    assert pq.read_metadata(path).num_row_groups == 1
    # Arrow counts the memory of a process, so a new process is measured.
    script = (
        "import sys, tracemalloc\n"
        "import pyarrow as pa\n"
        "from alexnet.sources import parquet_extract\n"
        "parquet_extract.SEGMENT_BYTES = 2**23\n"
        "tracemalloc.start()\n"
        "assert parquet_extract.extract_images(sys.argv[1], sys.argv[2]) == 800 * 200_000\n"
        "print(pa.default_memory_pool().max_memory() + tracemalloc.get_traced_memory()[1])\n"
    )
    command = [sys.executable, "-c", script, str(path), str(tmp_path / "extracted")]
    done = subprocess.run(command, capture_output=True, check=True)
    assert int(done.stdout) < 80e6, "the row group has 160 MB"
