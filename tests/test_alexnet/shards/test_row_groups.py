"""Mapped row groups: the bytes that Arrow reads, for any layout and any damage; checksums."""

import os
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alexnet import storage
from alexnet.errors import CorruptShardError
from alexnet.shards import row_groups
from alexnet.shards.codec import RAW_BYTES
from alexnet.shards.format import ROW_GROUP_ROWS, SCHEMA, RowGroup, read_row_group, write_shard
from alexnet.shards.row_groups import RowGroupData, RowGroupReader, Verify

ROWS = 70


def table(size: int = 300, rows: int = ROWS) -> pa.Table:
    """Rows with images of about some bytes, none of the same length."""
    random = np.random.default_rng(size)
    return pa.Table.from_pylist(
        [
            {
                "key": f"train/{row}",
                "label": row % 7,
                "wnid": "n01",
                "image": random.bytes(size + row if size < RAW_BYTES else size),
                "width": 256,
                "height": 256,
                "sha256": "",
            }
            for row in range(rows)
        ],
        schema=SCHEMA,
    )


def write(folder: Path, rows: pa.Table) -> Path:
    groups = [rows.slice(start, ROW_GROUP_ROWS) for start in range(0, len(rows), ROW_GROUP_ROWS)]
    write_shard(str(folder), "shard.parquet", groups)
    return folder / "shard.parquet"


def groups_of(path: Path) -> list[RowGroup]:
    return [RowGroup(str(path), 0, ROW_GROUP_ROWS), RowGroup(str(path), 1, ROWS - ROW_GROUP_ROWS)]


def images(data: RowGroupData) -> list[bytes]:
    pairs = zip(data.starts.tolist(), data.ends.tolist(), strict=True)
    return [data.data[start:end].tobytes() for start, end in pairs]


def is_mapped(path: Path) -> bool:
    return str(path) in Path("/proc/self/maps").read_text()


@pytest.mark.parametrize("size", [300, RAW_BYTES])
@pytest.mark.parametrize("limit", ["MAX_KEPT_BYTES", "MAX_KEPT_MAPS"])
def test_a_shard_is_mapped_and_has_the_rows_that_every_reader_finds(
    tmp_path: Path, size: int, limit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(row_groups, limit, 0)
    rows = table(size)
    path = write(tmp_path, rows)
    reader, seen, labels = RowGroupReader(), [], []
    for group in groups_of(path):
        data = reader.read(group, "once")
        assert is_mapped(path)
        seen += images(data)
        labels += data.labels.tolist()
        del data
    assert not is_mapped(path), "it is unmapped after its last use"
    assert seen == rows["image"].to_pylist()
    assert labels == rows["label"].to_pylist()
    query = f"SELECT image, label FROM '{path}'"
    assert duckdb.connect().execute(query).fetchall() == list(zip(seen, labels, strict=True))
    pandas = pytest.importorskip("pandas")
    assert pandas.read_parquet(path)["image"].tolist() == seen


@pytest.mark.parametrize("writable", [True, False])
@pytest.mark.parametrize("dropped", [True, False], ids=["dropped from the page cache", "cached"])
def test_maps_are_kept_for_later_epochs_up_to_a_limit(
    tmp_path: Path, writable: bool, dropped: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = table(5000)
    path = write(tmp_path, rows)
    monkeypatch.setattr(os, "access", lambda *_: writable)
    monkeypatch.setattr(row_groups, "MAX_KEPT_BYTES", 5100 * ROW_GROUP_ROWS)
    reader = RowGroupReader()
    kept, other = groups_of(path)
    address = reader.read(kept, "once").data.ctypes.data
    reader.read(other, "once")
    if dropped:
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    again = reader.read(kept, "once")
    assert again.data.ctypes.data == address
    assert images(again) == rows["image"].to_pylist()[:ROW_GROUP_ROWS]
    maps = Path("/proc/self/maps").read_text().splitlines()
    assert sum(line.endswith(str(path)) for line in maps) == 1, "the second exceeds the limit"


def test_a_replaced_shard_is_mapped_again(tmp_path: Path) -> None:
    path = write(tmp_path, table(5000))
    reader = RowGroupReader()
    reader.read(groups_of(path)[0], "once")
    rows = table(5000).set_column(3, "image", pa.array([b"\x07" * (5000 + n) for n in range(ROWS)]))
    write(tmp_path / "other", rows.cast(SCHEMA)).replace(path)
    assert images(reader.read(groups_of(path)[0], "once"))[0] == b"\x07" * 5000


def test_a_replaced_shard_of_the_same_size_has_its_own_labels(tmp_path: Path) -> None:
    path = write(tmp_path, table())
    reader = RowGroupReader()
    reader.read(groups_of(path)[0], "once")
    size = path.stat().st_size
    for shift in range(1, 7):  # Checksums are stored in more or fewer bytes.
        labels = [(row + shift) % 7 for row in range(ROWS)]
        rows = table().set_column(1, "label", pa.array(labels, pa.int32())).cast(SCHEMA)
        other = write(tmp_path / str(shift), rows)
        if other.stat().st_size == size:
            break
    else:
        pytest.fail("none has the same size")
    other.replace(path)
    assert reader.read(groups_of(path)[0], "once").labels.tolist() == labels[:ROW_GROUP_ROWS]


LAYOUTS: dict[str, tuple[bool, dict[str, Any]]] = {
    "many pages": (True, {"data_page_size": 2000, "write_batch_size": 1}),
    "no checksums": (True, {"write_page_checksum": False}),
    "statistics": (False, {"write_statistics": True}),
    "dictionary": (False, {"use_dictionary": True}),
    "compressed": (False, {"compression": "snappy"}),
    "pages of version 2": (False, {"data_page_version": "2.0"}),
    "other encoding": (False, {"column_encoding": {"image": "DELTA_LENGTH_BYTE_ARRAY"}}),
}
"""Whether the layout is mapped, and what makes it different."""


@pytest.mark.parametrize("layout", LAYOUTS)
def test_shards_with_other_layouts_have_the_same_rows(tmp_path: Path, layout: str) -> None:
    mapped, options = LAYOUTS[layout]
    rows, path = table(), tmp_path / "shard.parquet"
    usual = {
        "compression": "none",
        "use_dictionary": ["label"],
        "write_statistics": False,
        "write_page_checksum": True,
    }
    if "column_encoding" in options:
        usual["use_dictionary"] = False
    pq.write_table(rows, path, row_group_size=ROW_GROUP_ROWS, **usual | options)
    data = [RowGroupReader().read(group, "always") for group in groups_of(path)]
    assert is_mapped(path) == mapped
    assert [image for part in data for image in images(part)] == rows["image"].to_pylist()
    assert np.concatenate([part.labels for part in data]).tolist() == rows["label"].to_pylist()


def change(path: Path, old: bytes, new: bytes) -> None:
    """Change a file's bytes in place."""
    data = path.read_bytes()
    assert data.count(old) == 1
    with path.open("r+b") as file:
        file.seek(data.index(old))
        file.write(new)


@pytest.mark.parametrize(
    ("verify", "first", "later"),
    [("once", True, False), ("always", True, True), ("never", False, False)],
)
@pytest.mark.parametrize("mapped", [True, False])
def test_pages_are_compared_with_their_checksums(
    tmp_path: Path,
    verify: Verify,
    first: bool,
    later: bool,
    mapped: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """``first``, ``later``: whether damage is found that was there before or came after a read."""
    if not mapped:  # As if in an object store.
        monkeypatch.setattr(storage, "is_remote", lambda path: True)
    rows = table()
    image = rows["image"][3].as_py()
    for damaged_before, found in ((True, first), (False, later)):
        path = write(tmp_path, rows)
        group = groups_of(path)[0]
        reader = RowGroupReader()
        if not damaged_before:
            reader.read(group, verify)
        change(path, image[:20], bytes(20))
        if found:
            with pytest.raises(CorruptShardError, match="can't be read") as caught:
                reader.read(group, verify)
            assert str(caught.value).startswith(str(path))
            assert "\n" not in str(caught.value)
        else:
            assert images(reader.read(group, verify))[3] == bytes(20) + image[20:]


@pytest.mark.parametrize("damage", ["shorter", "missing", "a directory"])
def test_a_shard_that_changes_during_the_run_is_an_error(tmp_path: Path, damage: str) -> None:
    path = write(tmp_path, table())
    reader = RowGroupReader()
    for group in groups_of(path):
        reader.read(group, "once")
    if damage == "shorter":
        os.truncate(path, path.stat().st_size - 1)
    else:
        path.unlink()
    if damage == "a directory":
        path.mkdir()
    with pytest.raises(CorruptShardError, match="can't be read"):
        reader.read(groups_of(path)[0], "once")


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_changed_bytes_are_an_error_or_have_no_effect(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Whatever byte of a shard is changed: the stored rows, or those that Arrow reads, or an error.

    (Arrow reads other rows if it is the footer that is changed, and it refuses page headers in
    which a field has another value that matters to nobody.)
    """
    rows = table(20)
    path = write(tmp_path_factory.mktemp("changed"), rows)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        position = data.draw(st.integers(0, len(content) - 1))
        content[position] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    for group in groups_of(path):
        try:
            result = RowGroupReader().read(group, "once")
        except CorruptShardError:
            continue
        try:
            expected = read_row_group(group, ["image", "label"])
        except CorruptShardError:
            expected = rows.slice(group.number * ROW_GROUP_ROWS, group.rows)
        assert images(result) == expected["image"].to_pylist()
        assert result.labels.tolist() == expected["label"].to_pylist()
