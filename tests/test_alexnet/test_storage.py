"""Atomic writes, listings and paths on a local disk."""

import contextlib
import json
import os
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import fs

from alexnet import storage
from alexnet.errors import UserError
from alexnet.storage import files
from alexnet.storage.names import path_bytes, path_text


class Stop(Exception):
    """An error while a file is written."""


def files_below(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def write_half(path: str, error: type[BaseException]) -> None:
    with storage.atomic_output(path) as file:
        file.write(b"half")
        raise error


@pytest.mark.parametrize("error", [Stop, KeyboardInterrupt, OSError])
def test_an_exception_leaves_no_file(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "new" / "file"
    with pytest.raises(error):
        write_half(str(path), error)
    assert files_below(tmp_path) == []


def test_an_exception_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    storage.write_bytes(str(path), b"old")
    with pytest.raises(Stop):
        write_half(str(path), Stop)
    assert path.read_bytes() == b"old"
    assert files_below(tmp_path) == ["file"]


def test_the_file_does_not_exist_before_the_end(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "er" / "file"
    with storage.atomic_output(str(path)) as file:
        file.write(b"content")
        file.flush()
        assert not path.exists()
    assert path.read_bytes() == b"content"
    assert files_below(tmp_path) == ["deep/er/file"]


def test_concurrent_writers_of_one_file(tmp_path: Path) -> None:
    path = str(tmp_path / "file")
    with storage.atomic_output(path) as first, storage.atomic_output(path) as second:
        assert first.name != second.name
        first.write(b"first")
        second.write(b"second")
    assert (tmp_path / "file").read_bytes() == b"first", "the writer that ended last"

    contents = [bytes([65 + number]) * 100_000 for number in range(8)]
    contents_read: list[bytes] = []
    stop = threading.Event()

    def watch() -> None:
        while not stop.is_set():
            contents_read.append((tmp_path / "file").read_bytes())

    watcher = threading.Thread(target=watch)
    writers = [threading.Thread(target=storage.write_bytes, args=(path, c)) for c in contents]
    watcher.start()
    for thread in writers:
        thread.start()
    for thread in writers:
        thread.join()
    stop.set()
    watcher.join()
    assert set(contents_read) <= {b"first", *contents}
    assert (tmp_path / "file").read_bytes() in contents
    assert files_below(tmp_path) == ["file"]


def test_an_object_is_sent_only_when_it_is_complete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A local folder instead of the store: what is sent is visible at once.
    monkeypatch.setattr(
        files, "locate", lambda path: (fs.LocalFileSystem(), str(tmp_path / "object"))
    )
    with pytest.raises(Stop):
        write_half("s3://bucket/object", Stop)
    assert files_below(tmp_path) == []
    with storage.atomic_output("s3://bucket/object") as file:
        file.write(b"content")
        assert files_below(tmp_path) == []
    assert (tmp_path / "object").read_bytes() == b"content"


def test_json_is_indented_and_written_atomically(tmp_path: Path) -> None:
    path = tmp_path / "value.json"
    storage.write_json(str(path), {"b": 1, "a": [0.1, None]})
    assert list(json.loads(path.read_text())) == ["b", "a"]
    assert path.read_text().endswith("}\n")
    assert storage.read_json(str(path)) == {"b": 1, "a": [0.1, None]}
    with pytest.raises(ValueError, match="JSON"):
        storage.write_json(str(path), {"loss": float("nan")})
    assert storage.read_json(str(path)) == {"b": 1, "a": [0.1, None]}


def test_existence_size_and_listings(tmp_path: Path) -> None:
    storage.write_bytes(str(tmp_path / "b" / "two"), b"22")
    storage.write_bytes(str(tmp_path / "a"), b"1")
    folder, file = str(tmp_path / "b"), str(tmp_path / "a")
    assert (storage.exists(folder), storage.is_folder(folder), storage.is_file(folder)) == (
        True,
        True,
        False,
    )
    assert (storage.exists(file), storage.is_folder(file), storage.is_file(file)) == (
        True,
        False,
        True,
    )
    assert (storage.size(file), storage.size(folder), storage.size(file + "x")) == (1, -1, -1)
    listed = storage.list_files(str(tmp_path))
    assert [(one.path, one.size) for one in listed] == [(file, 1), (f"{folder}/two", 2)]
    assert [one.path for one in storage.list_files(str(tmp_path), recursive=False)] == [file]
    assert storage.list_folders(str(tmp_path)) == ["b"]
    assert storage.list_files(str(tmp_path / "none")) == []
    storage.delete_folder(folder)
    storage.delete_folder(folder)
    assert not storage.exists(folder)
    with pytest.raises(FileNotFoundError):
        storage.stat(folder)


def test_absolute_paths_do_not_depend_on_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert storage.absolute("x/../y") == str(tmp_path / "y")
    assert storage.absolute(f"file://{tmp_path}/y") == str(tmp_path / "y")
    assert storage.absolute("s3://bucket/x/") == "s3://bucket/x"
    assert storage.absolute("~/x") == os.path.expanduser("~/x")
    assert storage.join("s3://bucket/x", "y", "z") == "s3://bucket/x/y/z"


def test_the_error_names_a_uri_with_an_unknown_scheme() -> None:
    with pytest.raises(UserError, match="nosuch://x"):
        storage.exists("nosuch://x")


HOSTILE_BYTES = [
    b"caf\xe9.jpg",
    rb"caf\xe9.jpg",
    rb"caf\x5cxe9.jpg",
    b"\\\xff\\x",
    "é\u202e😀".encode(),
    b"a\nb%20$x$?*#.jpg",
    b"\xf0\x9f\xff",
]


@given(st.binary(min_size=1).filter(lambda name: b"\0" not in name))
def test_every_path_has_a_text_of_its_own(name: bytes) -> None:
    text = path_text(name)
    text.encode()  # Arrow, JSON and databases take it.
    assert path_bytes(text) == name
    with contextlib.suppress(UnicodeDecodeError):
        plain = name.decode()
        assert text == plain or "\\x" in plain


def test_only_paths_that_are_not_utf8_are_bytes_in_their_file_system() -> None:
    assert storage.locate("/é\n/a")[1] == "/é\n/a"
    assert storage.locate("/\\xe9/a")[1] == b"/\xe9/a"


def test_files_of_any_name_are_listed_read_and_written(tmp_path: Path) -> None:
    root = os.fsencode(tmp_path) + b"/\xfcber"
    for folder in HOSTILE_BYTES:
        os.makedirs(os.path.join(root, folder))
        for name in HOSTILE_BYTES:
            with open(os.path.join(root, folder, name), "wb") as opened:
                opened.write(name)
    source = storage.absolute(os.fsdecode(root))
    assert source == f"{tmp_path}/\\xfcber" == storage.absolute(source)
    assert sorted(map(path_bytes, storage.list_folders(source))) == sorted(HOSTILE_BYTES)
    files = storage.list_files(source)
    assert len({file.path for file in files}) == len(HOSTILE_BYTES) ** 2
    for file in files:
        name = path_bytes(file.path.rpartition("/")[2])
        assert storage.read_bytes(file.path) == name == storage.read_range(file.path, 0, file.size)
        assert storage.stat(file.path) == file
        storage.write_bytes(file.path, b"new" + name)
        assert storage.read_bytes(storage.absolute(file.path)) == b"new" + name
    storage.make_folder(storage.join(source, "new", path_text(b"\xff")))
    assert os.path.isdir(root + b"/new/\xff")
    storage.delete_folder(source)
    assert not os.path.exists(root)
