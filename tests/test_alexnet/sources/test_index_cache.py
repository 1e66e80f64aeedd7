"""The cached index is used if nothing has changed, and only then."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from source_layouts import WRITERS, make_tar, write_archives, write_file

from alexnet import storage
from alexnet.sources import archives, index_cache
from alexnet.sources.archives import DEVKIT, TRAIN_ARCHIVE, VAL_ARCHIVE
from alexnet.sources.read import Source, read_source


class ListedError(Exception):
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


def read_without_listing(root: Path, cache: Path) -> Source:
    def list_nested(path: str) -> None:
        raise ListedError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(archives, "list_nested", list_nested)
        return read(root, cache)


def cached_file(cache: Path) -> Path:
    (path,) = cache.iterdir()
    return path


def test_the_second_read_lists_nothing_and_returns_the_same(root: Path, cache: Path) -> None:
    first = read(root, cache)
    assert first == read_source(str(root))
    second = read_without_listing(root, cache)
    assert second == first
    assert second.index.schema.equals(first.index.schema, check_metadata=True)
    with pytest.raises(ListedError):
        read_without_listing(root, cache.with_name("other"))


@pytest.mark.parametrize("name", [TRAIN_ARCHIVE, VAL_ARCHIVE, DEVKIT])
def test_a_changed_archive_is_listed_again(root: Path, cache: Path, name: str) -> None:
    first = read(root, cache)
    old = cached_file(cache)
    time = (root / name).stat().st_mtime_ns
    os.utime(root / name, ns=(time, time + 1))
    with pytest.raises(ListedError):
        read_without_listing(root, cache)
    second = read(root, cache)
    assert second.source_fingerprint != first.source_fingerprint
    assert cached_file(cache) != old, "older files are deleted"
    (root / name).write_bytes((root / name).read_bytes() + bytes(512))
    os.utime(root / name, ns=(time, time + 1))
    with pytest.raises(ListedError):
        read_without_listing(root, cache)


def test_an_archive_with_other_content_gives_another_index(root: Path, cache: Path) -> None:
    before = read(root, cache).index
    write_file(root / VAL_ARCHIVE, make_tar({f"w_{number}.JPEG": b"new" for number in range(4)}))
    after = read(root, cache).index
    assert after != before
    assert after == read_source(str(root)).index


def test_copied_archives_do_not_use_the_cache(root: Path, cache: Path) -> None:
    read(root, cache)
    copy = root.with_name("copy")
    shutil.copytree(root, copy)
    paths = set(read(copy, cache).index["path"].to_pylist())
    assert paths == {str(copy / name) for name in (TRAIN_ARCHIVE, VAL_ARCHIVE)}


def test_another_version_of_the_code_does_not_use_the_cache(
    root: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read(root, cache)
    monkeypatch.setattr(index_cache, "code_version", lambda entries: "another version")
    with pytest.raises(ListedError):
        read_without_listing(root, cache)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def change_a_key(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content.replace(b"n01_1.JPEG", b"n01_9.JPEG"))
    assert path.read_bytes() != content


def invert_every_tenth_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[::10] = bytes(255 - byte for byte in content[::10])
    path.write_bytes(content)


def replace_by_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(
    "damage",
    [empty, truncate, change_a_key, invert_every_tenth_byte, Path.unlink, replace_by_folder],
)
def test_a_damaged_cache_is_not_used(
    root: Path, cache: Path, damage: Callable[[Path], None]
) -> None:
    first = read(root, cache)
    damage(cached_file(cache))
    with pytest.raises(ListedError):
        read_without_listing(root, cache)
    shutil.rmtree(cache)
    assert read(root, cache) == first


def test_a_cache_that_is_deleted_meanwhile_is_written_again(
    root: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = read(root, cache)
    original = storage.read_bytes

    def delete_and_read(path: str) -> bytes:
        Path(path).unlink()
        return original(path)

    monkeypatch.setattr(storage, "read_bytes", delete_and_read)
    assert read(root, cache) == first
    assert cached_file(cache).is_file()


def test_other_files_in_the_folder_are_not_changed(root: Path, cache: Path) -> None:
    write_file(cache / "notes.txt", "notes")
    read(root, cache)
    os.utime(root / DEVKIT, ns=(1, 1))
    read(root, cache)
    assert len(list(cache.iterdir())) == 2


@pytest.mark.parametrize("layout", ["folders", "kaggle", "parquet"])
def test_other_layouts_are_not_cached(tmp_path: Path, cache: Path, layout: str) -> None:
    WRITERS[layout](tmp_path / layout)
    assert read(tmp_path / layout, cache) == read_source(str(tmp_path / layout))
    assert not cache.exists()
