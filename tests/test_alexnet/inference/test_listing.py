"""The listing: parts of fixed size, completed and extended, compared with the inputs."""

import os
from collections.abc import Iterator
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from alexnet import storage
from alexnet.errors import InputsChangedError, UserError
from alexnet.inference.inputs import list_items
from alexnet.inference.items import Item
from alexnet.inference.known import HashSet
from alexnet.inference.listing import (
    ListedPart,
    is_listed,
    listing_folder,
    read_items,
    update_listing,
)
from alexnet.storage.names import path_bytes


def files(folder: Path, *names: str) -> None:
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / name).write_text(name)


def update(images: Path, output: Path, rows: int = 3) -> tuple[list[ListedPart], int]:
    return update_listing(str(output), list_items([str(images)]), rows)


def listed(output: Path, number: int) -> list[str]:
    return [os.path.basename(item.file) for item in read_items(str(output), number)[0]]


def contents(output: Path) -> dict[str, bytes]:
    folder = Path(listing_folder(str(output)))
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def images(tmp_path: Path) -> Path:
    files(tmp_path / "images", *(f"{number}.jpg" for number in range(8)))
    return tmp_path / "images"


def test_parts_have_fixed_sizes_and_the_same_listing_adds_none(
    images: Path, tmp_path: Path
) -> None:
    parts, added = update(images, tmp_path / "out")
    assert [part.rows for part in parts] == [3, 3, 2]
    assert added == 3
    before = contents(tmp_path / "out")
    assert update(images, tmp_path / "out") == (parts, 0)
    assert contents(tmp_path / "out") == before
    assert listed(tmp_path / "out", 2) == ["6.jpg", "7.jpg"]


@pytest.mark.parametrize("kept", [0, 1, 2])
def test_an_interrupted_listing_is_completed_with_the_same_bytes(
    images: Path, tmp_path: Path, kept: int
) -> None:
    update(images, tmp_path / "out")
    before = contents(tmp_path / "out")
    for name in sorted(before)[kept:]:
        (tmp_path / "out" / "_listing" / name).unlink()
    assert update(images, tmp_path / "out")[1] == 3 - kept
    assert contents(tmp_path / "out") == before


def test_new_files_become_further_parts(images: Path, tmp_path: Path) -> None:
    before = update(images, tmp_path / "out")[0]
    files(images, "00.jpg", "55.jpg", "9.jpg", "99.jpg")
    parts, added = update(images, tmp_path / "out")
    assert parts[:3] == before
    assert added == 2
    assert listed(tmp_path / "out", 3) == ["00.jpg", "55.jpg", "9.jpg"]
    assert listed(tmp_path / "out", 4) == ["99.jpg"]
    assert update(images, tmp_path / "out") == (parts, 0)


def test_changed_and_missing_files_are_refused_and_nothing_is_written(
    images: Path, tmp_path: Path
) -> None:
    update(images, tmp_path / "out")
    before = contents(tmp_path / "out")
    files(images, "new.jpg")
    (images / "3.jpg").unlink()
    with pytest.raises(InputsChangedError, match=r"of the 8 files .* 1 missing now, .*/3\.jpg$"):
        update(images, tmp_path / "out")
    (images / "5.jpg").write_text("other content")
    with pytest.raises(InputsChangedError, match=r"1 changed and 1 missing now, .*/5\.jpg$"):
        update(images, tmp_path / "out")
    assert contents(tmp_path / "out") == before


def test_any_missing_file_is_named(images: Path, tmp_path: Path) -> None:
    """Whatever its hash is, a number of 64 bits."""
    update(images, tmp_path / "out")
    for path in sorted(images.iterdir()):
        away = path.rename(tmp_path / "away")
        with pytest.raises(InputsChangedError, match=f"1 missing now, .*/{path.name}$"):
            update(images, tmp_path / "out")
        away.rename(path)


def test_a_wrong_input_leaves_no_listing(tmp_path: Path) -> None:
    written: list[bool] = []

    def items() -> Iterator[Item]:
        for number in range(10_000):
            name = f"/in/{number}"
            yield Item(name, name, name, 1, 0)
        written.append(is_listed(str(tmp_path)))
        raise UserError("missing: no such file")

    with pytest.raises(UserError, match="missing: no such file"):
        update_listing(str(tmp_path), items(), 3)
    assert written == [True]
    assert contents(tmp_path) == {}


def test_a_repeated_file_is_listed_once(images: Path, tmp_path: Path) -> None:
    inputs = [str(images / "4.jpg"), str(images), str(images)]
    parts, _ = update_listing(str(tmp_path / "out"), list_items(inputs), 100)
    assert [part.rows for part in parts] == [8]
    assert listed(tmp_path / "out", 0)[:2] == ["4.jpg", "0.jpg"]


def test_a_damaged_listing_is_one_line(images: Path, tmp_path: Path) -> None:
    update(images, tmp_path / "out")
    (tmp_path / "out" / "_listing" / "part-000001.parquet").write_bytes(b"x")
    with pytest.raises(UserError, match=r"part-000001\.parquet: the listing can't be read"):
        update(images, tmp_path / "out")


def test_names_that_are_not_utf8_are_stored(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    path = os.path.join(os.fsencode(tmp_path), b"images", b"\xff\n.jpg")
    with open(path, "wb"):
        pass
    update(tmp_path / "images", tmp_path / "out")
    (item,), _ = read_items(str(tmp_path / "out"), 0)
    assert path_bytes(item.file) == path
    assert item.path == storage.join(str(tmp_path), "images", "\\xff\n.jpg")


@given(st.lists(st.lists(st.integers(0, 30), max_size=8), max_size=12))
def test_a_hash_set_is_a_set(batches: list[list[int]]) -> None:
    hashes, expected = HashSet(), set[int]()
    for batch in batches:
        found = hashes.contains(np.arange(31, dtype=np.uint64))
        assert set(np.flatnonzero(found).tolist()) == expected
        hashes.add(np.array(batch, np.uint64))
        expected |= set(batch)
