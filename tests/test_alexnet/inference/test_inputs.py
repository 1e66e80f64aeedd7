"""Every kind of input gives items whose bytes are those of the images."""

import io
import os
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from alexnet.errors import UserError
from alexnet.inference.inputs import list_items
from alexnet.inference.items import WHOLE, Item
from alexnet.shards.manifest import Manifest

NAMES = ("b/1.jpg", "b/2.jpg", "a.jpg")


def content(name: str) -> bytes:
    return f"content of {name}".encode()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in NAMES:
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content(name))
    return tmp_path / "images"


def add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    archive.addfile(member, io.BytesIO(data))


def tar_bytes(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, data in files.items():
            add(archive, name, data)
    return buffer.getvalue()


def as_folder(images: Path) -> str:
    return str(images)


def as_glob(images: Path) -> str:
    return f"{images}/**/*.jp[!x]"


def as_glob_of_folders(images: Path) -> str:
    (images.parent / "other").mkdir()
    return f"{images.parent}/im*es"


def as_text(images: Path) -> str:
    lines = ["a.jpg", "", str(images / "b" / "1.jpg"), "../images/b/2.jpg\r"]
    path = images / "list.txt"
    path.write_text("\ufeff" + "\n".join(lines))
    return str(path)


def as_csv(images: Path) -> str:
    path = images / "list.csv"
    path.write_text('label,filename\n1,"a.jpg"\n2,b/1.jpg\n3,b/2.jpg\n')
    return str(path)


def as_parquet_of_paths(images: Path) -> str:
    pq.write_table(pa.table({"path": ["a.jpg", "b/1.jpg", "b/2.jpg"]}), images / "list.parquet")
    return str(images / "list.parquet")


def as_tar_of_tars(images: Path) -> str:
    inner = tar_bytes({"b/1.jpg": content("b/1.jpg"), "b/2.jpg": content("b/2.jpg")})
    data = tar_bytes({"a.jpg": content("a.jpg"), "inner.tar": inner, "._a.jpg": b"hidden"})
    (images / "all.tar").write_bytes(data)
    return str(images / "all.tar")


def as_folder_of_tars(images: Path) -> str:
    root = images.parent / "tars"
    root.mkdir()
    shutil.move(as_tar_of_tars(images), root)
    return str(root)


@pytest.mark.parametrize(
    "make",
    [
        as_folder,
        as_glob,
        as_glob_of_folders,
        as_text,
        as_csv,
        as_parquet_of_paths,
        as_tar_of_tars,
        as_folder_of_tars,
    ],
)
def test_an_input_gives_each_image_once(make: Callable[[Path], str], folder: Path) -> None:
    items = list(list_items([make(folder)]))
    assert [item.problem for item in items] == ["", "", ""]
    data = []
    for item in items:
        whole = Path(item.file).read_bytes()
        start = 0 if item.offset == WHOLE else item.offset
        data.append(whole[start : start + item.size])
        assert item.path.endswith(NAMES)
    assert sorted(data) == sorted(map(content, NAMES))
    assert len({item.path for item in items}) == len({item.real for item in items}) == 3


def test_one_file_and_several_inputs_keep_their_order(folder: Path) -> None:
    inputs = [str(folder / "b" / "2.jpg"), str(folder)]
    paths = [item.path.removeprefix(f"{folder}/") for item in list_items(inputs)]
    assert paths == ["b/2.jpg", "a.jpg", "b/1.jpg", "b/2.jpg"]


def test_the_rows_of_parquet_files_with_images(tmp_path: Path) -> None:
    images = [{"bytes": b"1", "path": "x/1.jpg"}, {"bytes": b"2", "path": None}]
    pq.write_table(pa.table({"image": images, "label": [0, 1]}), tmp_path / "hub.parquet")
    pq.write_table(pa.table({"image": [b"3"]}), tmp_path / "plain.parquet")
    pq.write_table(pa.table({"label": [3]}), tmp_path / "other.parquet")
    items = list(list_items([str(tmp_path)]))
    assert [(item.path.removeprefix(f"{tmp_path}/"), item.row) for item in items] == [
        ("hub.parquet/00000000-1.jpg", 0),
        ("hub.parquet/00000001", 1),
        ("other.parquet", WHOLE),
        ("plain.parquet/00000000", 0),
    ]
    assert items[2].problem == "unreadable: has no column image with bytes (but label)"


def test_the_images_of_a_data_set(dataset: Manifest) -> None:
    items = list(list_items([dataset.folder]))
    assert len(items) == dataset.rows("train") + dataset.rows("val")
    assert items[0].path.startswith(f"{dataset.folder}/train/part-00000.parquet/train/n0")
    assert items[-1].path.startswith(f"{dataset.folder}/val/part-00001.parquet/val/n0")


def test_what_is_damaged_inside_an_input_is_an_item_with_a_problem(folder: Path) -> None:
    good = tar_bytes({"x.jpg": b"x"})
    broken = tar_bytes({"big.jpg": b"x" * 2000})[:1024]
    (folder / "broken.tar").write_bytes(broken)
    (folder / "broken.parquet").write_bytes(b"PAR1 no")
    (folder / "outer.tar").write_bytes(tar_bytes({"bad.tar": broken, "good.tar": good}))
    with open(os.fsencode(folder) + b"/\xff.tar", "wb") as file:
        file.write(good)
    items = {item.path.removeprefix(f"{folder}/"): item for item in list_items([str(folder)])}
    problems = {name: item.problem for name, item in items.items() if item.problem}
    assert set(problems) == {"broken.tar", "broken.parquet", "outer.tar/bad.tar"}
    assert "truncated" in problems["broken.tar"]
    assert {"outer.tar/good.tar/x.jpg", "\\xff.tar/x.jpg"} <= set(items)


def test_links_in_archives_and_links_to_nothing(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        add(archive, "1.jpg", b"1")
        for name, target in (("2.jpg", "1.jpg"), ("3.jpg", "/etc/passwd")):
            link = tarfile.TarInfo(name)
            link.type, link.linkname = tarfile.SYMTYPE, target
            archive.addfile(link)
    first, second, third = list_items([str(tmp_path / "a.tar")])
    assert (first.offset, first.size) == (second.offset, second.size)
    assert third.problem == "unreadable: a link to no file of the archive"


def test_a_list_may_contain_what_predictions_contain(tmp_path: Path) -> None:
    """Names that are not UTF-8 are text there; a name may also look like such text."""
    names = (b"\xe9.jpg", rb"\xe9\x.jpg", rb"a\xe9.jpg")
    for name in names:
        with open(os.path.join(os.fsencode(tmp_path), name), "wb") as file:
            file.write(name)
    paths = [item.path for item in list_items([str(tmp_path)])]
    (tmp_path / "list.txt").write_text("\n".join(paths))
    (tmp_path / "bytes.txt").write_bytes(b"\n".join(names))
    for listing in ("list.txt", "bytes.txt"):
        items = list(list_items([str(tmp_path / listing)]))
        assert all(item.size > 0 for item in items)
        assert sorted(item.path for item in items) == sorted(paths)


def test_missing_files_of_a_list_are_items_with_a_problem(tmp_path: Path) -> None:
    name = b"\xff\xfe.jpg"
    with open(os.path.join(os.fsencode(tmp_path), name), "wb") as file:
        file.write(b"x")
    (tmp_path / "list.txt").write_bytes(b"gone.jpg\n" + name + b"\nnull\0.jpg\n")
    gone, odd, null = list_items([str(tmp_path / "list.txt")])
    assert gone.problem == "unreadable: No such file or directory"
    assert (odd.problem, odd.size) == ("", 1)
    assert null.problem == "unreadable: no such file"


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("missing", None, "missing: no such file or folder"),
        ("*.png", None, r"\*.png: contains no files"),
        ("empty.txt", b"\n", "empty.txt: contains no files"),
        ("l.csv", b"a,b\n1,2\n", "l.csv: has no column path, file, filename or image"),
        ("a.tar", b"x" * 600, "a.tar: damaged"),
        ("a.tar.gz", b"x", "a.tar.gz: is compressed"),
        ("a.parquet", b"PAR1", "a.parquet: not a readable Parquet file"),
    ],
)
def test_an_input_that_is_wrong_itself_is_one_line(
    tmp_path: Path, name: str, data: bytes | None, message: str
) -> None:
    if data is not None:
        (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError, match=message):
        list(list_items([str(tmp_path / name)]))


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="contains no files"):
        list(list_items([str(tmp_path)]))


def test_items_are_made_one_by_one(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second folder is not listed before the first one's files are used."""
    listed: list[bytes] = []
    scandir = os.scandir

    def scan(path: bytes) -> Any:
        listed.append(path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", scan)
    items = list_items([str(folder)])
    assert isinstance(next(items), Item)
    assert listed == [bytes(folder)]
