"""The files below a folder: order, hidden files, links, what can't be read."""

import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from alexnet.errors import UserError
from alexnet.inference import walk as walk_module
from alexnet.inference.walk import walk
from alexnet.sources.account import SAME_FILE
from alexnet.sources.visible import SPECIAL, visible_files
from alexnet.storage.names import path_bytes


def make(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


def found(root: Path) -> list[str]:
    return [item.path.removeprefix(f"{root}/") for item in walk(str(root), Counter())]


@pytest.fixture(params=[2, 200_000])
def sorted_in_files_or_memory(request: pytest.FixtureRequest, monkeypatch: Any) -> None:
    monkeypatch.setattr(walk_module, "RUN_NAMES", request.param)


@pytest.mark.usefixtures("sorted_in_files_or_memory")
def test_the_files_are_sorted_and_the_visible_ones_of_preprocessing(tmp_path: Path) -> None:
    names = ["b/2.jpg", "b/1.jpg", "a.jpg", "c.jpg", "b.jpg", "line\nbreak.jpg", "é/ü.png"]
    hidden = [".x.jpg", ".git/y.jpg", "b/.z.jpg", "Thumbs.db", "b/desktop.ini"]
    make(*(tmp_path / name for name in names + hidden))
    rest = ["c.jpg", "line\nbreak.jpg", "é/ü.png"]
    assert found(tmp_path) == ["a.jpg", "b/1.jpg", "b/2.jpg", "b.jpg", *rest]
    ignored = Counter[str]()
    list(walk(str(tmp_path), ignored))
    assert ignored == {"hidden": 2, "Windows": 2, "version control": 1}
    assert sorted(found(tmp_path)) == sorted(
        file.path.removeprefix(f"{tmp_path}/") for file in visible_files(str(tmp_path))
    )


@pytest.mark.usefixtures("sorted_in_files_or_memory")
def test_names_that_are_not_utf8_lead_to_their_files(tmp_path: Path) -> None:
    names = [b"\xff.jpg", b"a\n.jpg", b"z.jpg", b"\xc3\xa9.jpg"]
    for name in names:
        with open(os.path.join(os.fsencode(tmp_path), name), "wb") as file:
            file.write(name)
    for item in walk(str(tmp_path), Counter()):
        path = path_bytes(item.path)
        with open(path, "rb") as file:
            assert os.path.basename(path) == file.read()
        names.remove(os.path.basename(path))
    assert names == []


def test_links_loops_and_special_files(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    make(root / "a" / "1.jpg", outside / "2.jpg", outside / "sub" / "3.jpg")
    make(root / ".hidden" / "4.jpg")
    (root / "a" / "loop").symlink_to(root)
    (root / "a" / "inside").symlink_to(root / "a" / "1.jpg")
    (root / "b").symlink_to(outside)
    (root / "c").symlink_to(outside)
    (root / "d.jpg").symlink_to(outside / "sub" / "3.jpg")
    (root / "e.jpg").symlink_to(root / ".hidden" / "4.jpg")
    (root / "f.jpg").symlink_to(root / "missing.jpg")
    (outside / "back").symlink_to(root)
    (outside / "self").symlink_to(outside)
    os.mkfifo(root / "pipe")
    ignored = Counter[str]()
    items = {item.path.removeprefix(f"{root}/"): item for item in walk(str(root), ignored)}
    assert ignored == {"hidden": 1, SPECIAL: 1, SAME_FILE: 6}
    assert list(items) == ["a/1.jpg", "b/2.jpg", "b/sub/3.jpg", "e.jpg", "f.jpg"]
    assert items["b/sub/3.jpg"].real == str(outside / "sub" / "3.jpg")
    assert items["f.jpg"].problem == "unreadable: No such file or directory"


def test_a_link_before_the_folder_that_it_leads_into_gives_the_same_file_twice(
    tmp_path: Path,
) -> None:
    """The caller drops the second one."""
    make(tmp_path / "outside" / "1.jpg")
    root = tmp_path / "root"
    root.mkdir()
    (root / "a.jpg").symlink_to(tmp_path / "outside" / "1.jpg")
    (root / "b").symlink_to(tmp_path / "outside")
    first, second = walk(str(root), Counter())
    assert first.real == second.real == str(tmp_path / "outside" / "1.jpg")


def refuse(monkeypatch: pytest.MonkeyPatch, name: str, error: OSError) -> None:
    """Listing a folder of this name fails."""
    scandir = os.scandir

    def scan(path: bytes) -> Any:
        if os.path.basename(path) == name.encode():
            raise error
        return scandir(path)

    monkeypatch.setattr(os, "scandir", scan)


def test_a_folder_that_may_not_be_read_is_found_with_its_problem(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path / "a" / "1.jpg", tmp_path / "b" / "2.jpg", tmp_path / "c" / "3.jpg")
    refuse(monkeypatch, "b", PermissionError(13, "Permission denied"))
    problems = [(item.path, item.problem) for item in walk(str(tmp_path), Counter())]
    assert problems == [
        (f"{tmp_path}/a/1.jpg", ""),
        (f"{tmp_path}/b", "unreadable: Permission denied (folder)"),
        (f"{tmp_path}/c/3.jpg", ""),
    ]


@pytest.mark.parametrize(
    ("name", "error"), [("root", PermissionError(13, "denied")), ("b", OSError(5, "I/O error"))]
)
def test_a_disk_that_fails_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, error: OSError
) -> None:
    make(tmp_path / "root" / "b" / "2.jpg")
    refuse(monkeypatch, name, error)
    with pytest.raises(UserError, match=rf"/{name}: can't be listed \({error.strerror}\)"):
        list(walk(str(tmp_path / "root"), Counter()))
