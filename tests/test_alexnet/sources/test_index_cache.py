"""The kept index: used when nothing has changed, and never otherwise."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from test_sources import WRITERS, tar, write, write_archives

from alexnet.sources import index_cache
from alexnet.sources import read as read_module
from alexnet.sources.read import DEVKIT, TRAIN_ARCHIVE, VAL_ARCHIVE, Source, read_source


class Walked(Exception):
    """An archive was listed."""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "raw"
    write_archives(root)
    return root


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "work" / "index"


def read(root: Path, cache: Path) -> Source:
    return read_source(str(root), str(cache))


def read_without_walking(root: Path, cache: Path) -> Source:
    def walked(path: str) -> None:
        raise Walked

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(read_module, "list_nested", walked)
        return read(root, cache)


def kept(cache: Path) -> Path:
    (path,) = cache.iterdir()
    return path


def test_a_second_reading_lists_nothing_and_finds_the_same(root: Path, cache: Path) -> None:
    first = read(root, cache)
    assert first == read_source(str(root))
    again = read_without_walking(root, cache)
    assert again == first
    assert again.index.schema.equals(first.index.schema, check_metadata=True)
    with pytest.raises(Walked):
        read_without_walking(root, cache.with_name("other"))


@pytest.mark.parametrize("name", [TRAIN_ARCHIVE, VAL_ARCHIVE, DEVKIT])
def test_an_archive_that_changed_is_listed_again(root: Path, cache: Path, name: str) -> None:
    first = read(root, cache)
    old = kept(cache)
    time = (root / name).stat().st_mtime_ns
    os.utime(root / name, ns=(time, time + 1))
    with pytest.raises(Walked):
        read_without_walking(root, cache)
    second = read(root, cache)
    assert second.fingerprint != first.fingerprint
    assert kept(cache) != old, "only the newest is kept"
    (root / name).write_bytes((root / name).read_bytes() + bytes(512))
    os.utime(root / name, ns=(time, time + 1))
    with pytest.raises(Walked):
        read_without_walking(root, cache)


def test_other_contents_give_another_index(root: Path, cache: Path) -> None:
    before = read(root, cache).index
    write(root / VAL_ARCHIVE, tar({f"w_{number}.JPEG": b"new" for number in range(4)}))
    after = read(root, cache).index
    assert after != before
    assert after == read_source(str(root)).index


def test_archives_elsewhere_are_others(root: Path, cache: Path) -> None:
    read(root, cache)
    elsewhere = root.with_name("elsewhere")
    shutil.copytree(root, elsewhere)
    paths = set(read(elsewhere, cache).index["path"].to_pylist())
    assert paths == {str(elsewhere / name) for name in (TRAIN_ARCHIVE, VAL_ARCHIVE)}


def test_another_version_of_the_code_lists_again(
    root: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read(root, cache)
    monkeypatch.setattr(index_cache, "code_version", lambda entries: "another version")
    with pytest.raises(Walked):
        read_without_walking(root, cache)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def change_a_key(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content.replace(b"n01_1.JPEG", b"n01_9.JPEG"))
    assert path.read_bytes() != content


def turn_every_tenth_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[::10] = bytes(255 - byte for byte in content[::10])
    path.write_bytes(content)


def make_a_folder_of_it(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(
    "damage", [empty, cut, change_a_key, turn_every_tenth_byte, Path.unlink, make_a_folder_of_it]
)
def test_a_damaged_index_is_not_trusted(
    root: Path, cache: Path, damage: Callable[[Path], None]
) -> None:
    first = read(root, cache)
    damage(kept(cache))
    with pytest.raises(Walked):
        read_without_walking(root, cache)
    shutil.rmtree(cache)
    assert read(root, cache) == first


def test_an_index_that_vanishes_is_made_again(
    root: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = read(root, cache)
    path = str(kept(cache))
    Path(path).unlink()
    monkeypatch.setattr(index_cache, "_kept", lambda folder: [path])
    assert read(root, cache) == first


def test_what_lies_beside_is_left_alone(root: Path, cache: Path) -> None:
    write(cache / "notes.txt", "mine")
    read(root, cache)
    os.utime(root / DEVKIT, ns=(1, 1))
    read(root, cache)
    assert len(list(cache.iterdir())) == 2


@pytest.mark.parametrize("form", ["folders", "kaggle", "parquet"])
def test_other_forms_keep_nothing(tmp_path: Path, cache: Path, form: str) -> None:
    WRITERS[form](tmp_path / form)
    assert read(tmp_path / form, cache) == read_source(str(tmp_path / form))
    assert not cache.exists()
