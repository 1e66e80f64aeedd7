"""Reading a source: one small data set in every layout, and messages for incomplete sources."""

import os
import shutil
import tarfile
from pathlib import Path

import pytest
from source_layouts import (
    LABELS,
    TEXT_DATA_SET,
    WRITERS,
    DataSet,
    contents_of,
    make_tar,
    read_error,
    write_archives,
    write_file,
    write_folders,
    write_kaggle,
)

from alexnet import storage
from alexnet.sources.archives import DEVKIT, TRAIN_ARCHIVE, VAL_ARCHIVE
from alexnet.sources.index import SCHEMA
from alexnet.sources.labels import Label
from alexnet.sources.read import read_source

REAL_DATA = os.environ.get("ALEXNET_REAL_DATA")


@pytest.mark.parametrize("layout", WRITERS)
def test_every_layout_gives_the_same_images_and_classes(tmp_path: Path, layout: str) -> None:
    WRITERS[layout](tmp_path)
    source = read_source(str(tmp_path))
    assert source.layout == layout
    index_of = {label.wnid: index for index, label in enumerate(LABELS)}
    inside = "images/" if layout == "tiny-imagenet" else ""
    expected = {
        f"train/{wnid}/{inside}{name}": ("train", wnid, index_of[wnid], content)
        for wnid, contents in TEXT_DATA_SET.train.items()
        for name, content in contents.items()
    }
    with_folders = layout in ("folders", "parquet", "tiny-imagenet")
    for name, content in TEXT_DATA_SET.val.items():
        wnid = TEXT_DATA_SET.val_wnids[name]
        key = f"val/{wnid}/{name}.JPEG" if with_folders else f"val/{name}.JPEG"
        expected[key] = ("val", wnid, index_of[wnid], content)
    assert contents_of(source) == expected
    assert source.index.schema == SCHEMA
    keys = source.index["key"].to_pylist()
    assert keys == sorted(expected)
    names = (
        LABELS
        if layout not in ("folders", "parquet")
        else tuple(Label(wnid, wnid) for wnid, _ in LABELS)
    )
    assert source.labels == names


@pytest.mark.parametrize("layout", WRITERS)
def test_fingerprint_depends_on_files_but_not_on_their_path(tmp_path: Path, layout: str) -> None:
    WRITERS[layout](tmp_path / "original")
    before = read_source(str(tmp_path / "original"))
    shutil.copytree(tmp_path / "original", tmp_path / "copy")
    assert read_source(str(tmp_path / "copy")).source_fingerprint == before.source_fingerprint
    fingerprints = {before.source_fingerprint}
    for path in sorted(path for path in (tmp_path / "original").rglob("*") if path.is_file()):
        if path.name.startswith(("test", "unlabelled")) or path.name.endswith("boxes.txt"):
            continue
        os.utime(path, ns=(0, 0))
        fingerprint = read_source(str(tmp_path / "original")).source_fingerprint
        assert fingerprint not in fingerprints, path
        fingerprints.add(fingerprint)


def test_imagenette_classes_get_their_names(tmp_path: Path) -> None:
    for split in ("train", "val"):
        write_file(tmp_path / split / "n01440764" / "x.JPEG", b"x")
        write_file(tmp_path / split / "cat" / "x.JPEG", b"x")
    labels = read_source(str(tmp_path)).labels
    assert labels == (Label("cat", "cat"), Label("n01440764", "tench, Tinca tinca"))


def test_folders_with_a_devkit_are_read_as_folders(tmp_path: Path) -> None:
    write_folders(tmp_path)
    write_file(tmp_path / DEVKIT, b"ignored")
    assert read_source(str(tmp_path)).layout == "folders"


def test_the_error_for_an_unknown_layout_lists_the_layouts(tmp_path: Path) -> None:
    assert "no such folder" in read_error(tmp_path / "missing")
    write_file(tmp_path / "file.tar", b"x")
    assert "is a file" in read_error(tmp_path / "file.tar")
    assert "contains packed files (file.tar); unpack them" in read_error(tmp_path)
    (tmp_path / "file.tar").unlink()
    message = read_error(tmp_path)
    assert all(
        name in message for name in (TRAIN_ARCHIVE, "ILSVRC/Data/CLS-LOC/", "train/ and val/")
    )
    write_folders(tmp_path)
    (tmp_path / "val").rename(tmp_path / "validation")
    assert "rename validation/ to val/" in read_error(tmp_path)


@pytest.mark.parametrize("missing", [TRAIN_ARCHIVE, VAL_ARCHIVE, DEVKIT])
def test_the_error_names_the_missing_archive(tmp_path: Path, missing: str) -> None:
    write_archives(tmp_path)
    (tmp_path / missing).unlink()
    assert f"{missing} is missing" in read_error(tmp_path)


@pytest.mark.parametrize("layout", ["archives", "parquet"])
def test_classes_can_differ_in_case_only(tmp_path: Path, layout: str) -> None:
    """Nothing is unpacked, so file systems that ignore case do not matter."""
    labels = tuple(Label(wnid, "crane") for wnid in ("CAT", "Cat", "cat"))
    data = DataSet(
        labels=labels,
        train={wnid: {"x.JPEG": wnid.encode()} for wnid, _ in labels},
        val={"v": b"v"},
        val_wnids={"v": "Cat"},
        ids={"CAT": 1, "Cat": 2, "cat": 3},
    )
    WRITERS[layout](tmp_path, data)
    contents = contents_of(read_source(str(tmp_path)))
    assert {key: row[1:] for key, row in contents.items() if row[0] == "train"} == {
        f"train/{wnid}/x.JPEG": (wnid, number, wnid.encode())
        for number, (wnid, _) in enumerate(labels)
    }


def test_control_characters_in_keys_are_escaped(tmp_path: Path) -> None:
    write_folders(tmp_path)
    write_file(tmp_path / "train/n01/a\n\x1b[31mb.JPEG", b"odd")
    contents = contents_of(read_source(str(tmp_path)))
    assert contents[r"train/n01/a\x0a\x1b[31mb.JPEG"] == ("train", "n01", 0, b"odd")


def test_the_error_names_both_files_of_a_repeated_key(tmp_path: Path) -> None:
    write_archives(tmp_path)
    repack(tmp_path, TRAIN_ARCHIVE, n02__tar=make_tar({"a/x\ny": b"1", "b/x\ny": b"2"}))
    path = tmp_path / TRAIN_ARCHIVE
    with tarfile.open(path) as archive:
        start = archive.getmember("n02.tar").offset_data
    assert read_error(tmp_path) == (
        rf"{path}: train/n02/x\x0ay is at byte {start + 512} and again in {path} at byte "
        f"{start + 1536}; remove one of them"
    )


def without(data: DataSet, split: str) -> DataSet:
    """The data set without the images of a split; its classes remain."""
    if split == "val":
        return data._replace(val={}, val_wnids={})
    return data._replace(train={wnid: {} for wnid in data.train})


def with_empty_files(data: DataSet, split: str) -> DataSet:
    """The data set with files of 0 bytes in a split."""
    if split == "val":
        return data._replace(val=dict.fromkeys(data.val, b""))
    train = {wnid: dict.fromkeys(contents, b"") for wnid, contents in data.train.items()}
    return data._replace(train=train)


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("layout", WRITERS)
def test_a_split_without_images_is_an_error(tmp_path: Path, layout: str, split: str) -> None:
    """Otherwise it would be found only when all shards of the other split are made."""
    WRITERS[layout](tmp_path, without(TEXT_DATA_SET, split))
    if layout in ("folders", "kaggle"):  # Their writers create no folder without a file.
        root = tmp_path / ("ILSVRC/Data/CLS-LOC" if layout == "kaggle" else "") / split
        for wnid, _ in LABELS if (layout, split) != ("kaggle", "val") else [("", "")]:
            (root / wnid).mkdir(parents=True, exist_ok=True)
    message = read_error(tmp_path)
    assert "contains no images" in message
    assert split in message


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("layout", ["archives", "kaggle", "folders", "tiny-imagenet"])
def test_a_split_of_empty_files_is_an_error(tmp_path: Path, layout: str, split: str) -> None:
    WRITERS[layout](tmp_path, with_empty_files(TEXT_DATA_SET, split))
    message = read_error(tmp_path)
    assert f"contains no images of the split {split}, only empty files; " in message


def repack(root: Path, name: str, **changes: bytes | None) -> None:
    """Replace, add or (None) remove members of an archive; ``__`` in a name means a dot."""
    with tarfile.open(root / name) as archive:
        files = {m.name: archive.extractfile(m).read() for m in archive}  # type: ignore[union-attr]
    for member, content in changes.items():
        files.pop(member.replace("__", "."), None)
        if content is not None:
            files[member.replace("__", ".")] = content
    write_file(root / name, make_tar(files))


@pytest.mark.parametrize(
    ("name", "changes", "expected"),
    [
        (
            TRAIN_ARCHIVE,
            {"n99__tar": make_tar({"x": b"x"})},
            f"contains n99.tar, which {DEVKIT} does not have",
        ),
        (TRAIN_ARCHIVE, {"n02__tar": None, "n02": make_tar({"x": b"x"})}, "lacks n02.tar"),
        (TRAIN_ARCHIVE, {"n02__tar": None}, f"lacks n02.tar, which {DEVKIT} has"),
        (TRAIN_ARCHIVE, {"n02__tar": make_tar({})}, "n02.tar: contains no images"),
        (TRAIN_ARCHIVE, {"n02__tar": make_tar({"a/..": b"1"})}, "n02.tar: damaged"),
        (TRAIN_ARCHIVE, {"n02__tar": make_tar({"x": b"x"})[:700]}, "truncated"),
        (VAL_ARCHIVE, {"v_5__JPEG": b"more"}, "contains 5 images, but"),
        (VAL_ARCHIVE, {"v_4__JPEG": None}, "devkit does not match"),
    ],
)
def test_archives_that_contradict_each_other_raise_an_error(
    tmp_path: Path, name: str, changes: dict[str, bytes | None], expected: str
) -> None:
    write_archives(tmp_path)
    repack(tmp_path, name, **changes)
    message = read_error(tmp_path)
    assert name in message
    assert expected in message


def test_an_empty_class_folder_and_an_unknown_class_raise_errors(tmp_path: Path) -> None:
    write_folders(tmp_path)
    (tmp_path / "train/empty").mkdir()
    assert "train/empty: contains no images" in read_error(tmp_path)
    (tmp_path / "train/empty").rename(tmp_path / "val/extra")
    assert "val: its folders extra are no classes of train/ (n01, n02, n02-b)" in read_error(
        tmp_path
    )
    shutil.rmtree(tmp_path / "val")
    write_file(tmp_path / "val/x.JPEG", b"flat")
    assert "val: contains no class folders, but files (x.JPEG); move" in read_error(tmp_path)


@pytest.mark.parametrize(
    ("path", "content", "expected"),
    [
        ("LOC_synset_mapping.txt", None, "LOC_synset_mapping.txt: can't be read"),
        ("LOC_val_solution.csv", None, "LOC_val_solution.csv: can't be read"),
        ("LOC_synset_mapping.txt", "n01 tench\nn02 crane\n", "does not have (they do not match)"),
        (
            "LOC_val_solution.csv",
            "ImageId,PredictionString\nv_1,n77 1 2 3 4\n",
            "LOC_val_solution.csv: class n77 is not in",
        ),
        ("ILSVRC/Data/CLS-LOC/train/n02/n02_7.JPEG", None, "train/n02: contains no images"),
        (
            "LOC_val_solution.csv",
            "ImageId,PredictionString\nw_1,n01 1 2 3 4\n",
            "none of its images (v_1.JPEG, v_2.JPEG, v_3.JPEG, …) is in LOC_val_solution.csv",
        ),
    ],
)
def test_kaggle_files_that_contradict_each_other_raise_an_error(
    tmp_path: Path, path: str, content: str | None, expected: str
) -> None:
    write_kaggle(tmp_path)
    if content is None:
        (tmp_path / path).unlink()
    else:
        write_file(tmp_path / path, content)
    assert expected in read_error(tmp_path)


@pytest.mark.parametrize("layout", ["archives", "folders"])
def test_a_source_without_read_permission_raises_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: str
) -> None:
    WRITERS[layout](tmp_path)

    def deny(*arguments: object, **options: object) -> None:
        raise PermissionError(13, "Permission denied")

    # Root can read all files, so a test with the mode of a file would not fail for root.
    monkeypatch.setattr(storage, "open_input" if layout == "archives" else "walk", deny)
    assert "Permission denied" in read_error(tmp_path)


@pytest.mark.skipif(not REAL_DATA, reason="ALEXNET_REAL_DATA is not set")
def test_real_archives_have_the_members_that_tarfile_lists() -> None:
    root = Path(str(REAL_DATA), "ilsvrc2012-ten")
    source = read_source(str(root))
    rows = {row["key"]: row for row in source.index.to_pylist()}
    assert len(rows) == 9469 + 3925
    with tarfile.open(root / TRAIN_ARCHIVE) as outer:
        for label in source.labels:
            with tarfile.open(fileobj=outer.extractfile(f"{label.wnid}.tar")) as inner:
                for member in inner.getmembers()[::100]:
                    row = rows[f"train/{label.wnid}/{member.name}"]
                    content = storage.read_range(row["path"], row["offset"], row["size"])
                    assert content == inner.extractfile(member).read()  # type: ignore[union-attr]
