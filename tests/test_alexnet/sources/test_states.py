"""Common states of data sets as people have them: read, or named with what helps."""

import gzip
import io
import os
import re
import shutil
import tarfile
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from source_layouts import (
    LABELS,
    TEXT_DATA_SET,
    WRITERS,
    contents_of,
    make_tar,
    read_error,
    write_archives,
    write_file,
    write_folders,
    write_kaggle,
    write_parquet,
    write_tiny_imagenet,
)

from alexnet.errors import UserError
from alexnet.shards.codec import Encoding
from alexnet.shards.plan import write_plan
from alexnet.shards.write import make_shard
from alexnet.sources import parquet_extract
from alexnet.sources.archives import DEVKIT, TRAIN_ARCHIVE, VAL_ARCHIVE
from alexnet.sources.read import read_source

KAGGLE_VAL = "ILSVRC/Data/CLS-LOC/val"


@pytest.mark.parametrize("split", ["train", "val"])
def test_classes_one_level_too_deep_are_named(tmp_path: Path, split: str) -> None:
    write_folders(tmp_path)
    (tmp_path / split).rename(tmp_path / "moved")
    (tmp_path / split).mkdir()
    (tmp_path / "moved").rename(tmp_path / split / split)
    assert read_error(tmp_path) == (
        f"{tmp_path / split}: contains only the folder {split}/, with 3 folders (n01, n02, n02-b): "
        f"the classes are one level too deep; move them up into {split}/"
    )


@pytest.mark.parametrize("layout", WRITERS)
@pytest.mark.parametrize("deeper", ["imagenet", "snapshots/0123abcd"])
def test_the_folder_above_a_data_set_is_named(tmp_path: Path, layout: str, deeper: str) -> None:
    WRITERS[layout](tmp_path / deeper)
    assert f"contains no data set, but {deeper}/ does; give {tmp_path / deeper}" in read_error(
        tmp_path
    )


def test_one_split_given_instead_of_the_data_set_is_named(tmp_path: Path) -> None:
    write_folders(tmp_path)
    assert read_error(tmp_path / "train").endswith(f"is one split of a data set; give {tmp_path}")


def test_a_part_of_kaggles_layout_given_instead_of_the_whole_is_named(tmp_path: Path) -> None:
    write_kaggle(tmp_path)
    message = read_error(tmp_path / "ILSVRC/Data/CLS-LOC")
    assert message.endswith(f"whose classes are in LOC_synset_mapping.txt; give {tmp_path}")


def test_a_test_split_instead_of_a_validation_split_is_named(tmp_path: Path) -> None:
    write_parquet(tmp_path)
    (tmp_path / "data/validation-00000-of-00001.parquet").unlink()
    assert "data/test-00000-of-00001.parquet are known, rename it to validation-" in read_error(
        tmp_path
    )


def test_an_unpacked_training_set_beside_a_packed_validation_set_is_named(tmp_path: Path) -> None:
    write_archives(tmp_path)
    (tmp_path / TRAIN_ARCHIVE).unlink()
    write_file(tmp_path / "train/n01/x.JPEG", b"x")
    assert "contains train/ but no val/; add val/ with a folder for each class" in read_error(
        tmp_path
    )


def test_classes_without_splits_are_named(tmp_path: Path) -> None:
    for wnid in ("cat", "dog"):
        write_file(tmp_path / wnid / "1.JPEG", b"x")
    assert "contains folders (cat, dog), but neither train/ nor val/" in read_error(tmp_path)


@pytest.mark.parametrize(("split", "other"), [("val", "validation"), ("train", "training")])
def test_a_split_with_another_name_is_named(tmp_path: Path, split: str, other: str) -> None:
    write_folders(tmp_path)
    (tmp_path / split).rename(tmp_path / other)
    assert f"rename {other}/ to {split}/" in read_error(tmp_path)


def test_unsorted_validation_images_are_named(tmp_path: Path) -> None:
    write_folders(tmp_path)
    for path in sorted((tmp_path / "val").glob("*/*")):
        path.rename(tmp_path / "val" / path.name)
    for folder in sorted(path for path in (tmp_path / "val").iterdir() if path.is_dir()):
        folder.rmdir()
    message = read_error(tmp_path)
    assert "val: contains no class folders, but files (v_1.JPEG, v_2.JPEG, v_3.JPEG, …)" in message
    assert "its three archives in one folder are read" in message
    (tmp_path / "val/images").mkdir()
    for path in sorted((tmp_path / "val").glob("*.JPEG")):
        path.rename(tmp_path / "val/images" / path.name)
    assert "if its images are not sorted yet, move each" in read_error(tmp_path)


def test_a_train_folder_of_class_archives_is_named(tmp_path: Path) -> None:
    write_file(tmp_path / "train/n01.tar", make_tar({"n01_1.JPEG": b"x"}))
    write_file(tmp_path / "val/n01/x.JPEG", b"x")
    assert "train: contains no class folders, but archives (n01.tar); unpack each" in read_error(
        tmp_path
    )


def test_a_class_that_train_lacks_is_named_with_both_remedies(tmp_path: Path) -> None:
    write_folders(tmp_path)
    shutil.rmtree(tmp_path / "train/n02")
    message = read_error(tmp_path)
    assert "its folders n02 are no classes of train/ (n01, n02-b); complete train/" in message


def sort_kaggle(root: Path, images: tuple[str, ...]) -> None:
    """Move validation images into the folders of their classes."""
    for image in images:
        folder = root / KAGGLE_VAL / TEXT_DATA_SET.val_wnids[image]
        folder.mkdir(exist_ok=True)
        (root / KAGGLE_VAL / f"{image}.JPEG").rename(folder / f"{image}.JPEG")


@pytest.mark.parametrize("images", [("v_1", "v_3"), ("v_1", "v_2", "v_3", "v_4")])
def test_a_sorted_validation_set_of_kaggle_is_read(tmp_path: Path, images: tuple[str, ...]) -> None:
    write_kaggle(tmp_path)
    before = contents_of(read_source(str(tmp_path)))
    sort_kaggle(tmp_path, images)
    source = read_source(str(tmp_path))
    assert contents_of(source) == before
    assert source.account.error(str(tmp_path)) is None


def test_a_sorted_validation_set_needs_no_solution_file(tmp_path: Path) -> None:
    write_kaggle(tmp_path)
    before = contents_of(read_source(str(tmp_path)))
    (tmp_path / "LOC_val_solution.csv").unlink()
    assert "LOC_val_solution.csv: can't be read" in read_error(tmp_path)
    sort_kaggle(tmp_path, ("v_1", "v_2", "v_3"))
    error = read_source(str(tmp_path)).account.error(str(tmp_path))
    assert f"left over: 1 ({KAGGLE_VAL}/v_4.JPEG), beside the class folders" in str(error)
    sort_kaggle(tmp_path, ("v_4",))
    assert contents_of(read_source(str(tmp_path))) == before


def test_an_image_in_the_folder_of_another_class_is_named(tmp_path: Path) -> None:
    write_kaggle(tmp_path)
    sort_kaggle(tmp_path, ("v_1",))
    (tmp_path / KAGGLE_VAL / "n02").rename(tmp_path / KAGGLE_VAL / "n01")
    assert "n01/v_1.JPEG: is in the folder of n01, but LOC_val_solution.csv has it in n02" in (
        read_error(tmp_path)
    )


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-8"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("delimiter", [",", ";"])
def test_texts_of_spreadsheets_and_shells_are_read(
    tmp_path: Path, encoding: str, newline: str, delimiter: str
) -> None:
    write_kaggle(tmp_path)
    before = read_source(str(tmp_path))
    for name in ("LOC_synset_mapping.txt", "LOC_val_solution.csv"):
        text = (tmp_path / name).read_text().replace("\n", newline)
        text = text.replace(",", delimiter) if name.endswith("csv") else text
        (tmp_path / name).write_bytes(text.encode(encoding))
    source = read_source(str(tmp_path))
    assert (source.index, source.labels) == (before.index, before.labels)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-8"])
def test_texts_of_tiny_imagenet_with_other_line_ends_are_read(
    tmp_path: Path, encoding: str
) -> None:
    write_tiny_imagenet(tmp_path)
    before = read_source(str(tmp_path))
    for name in ("wnids.txt", "words.txt", "val/val_annotations.txt"):
        text = (tmp_path / name).read_text().replace("\n", "\r\n")
        (tmp_path / name).write_bytes(text.encode(encoding))
    source = read_source(str(tmp_path))
    assert (source.index, source.labels) == (before.index, before.labels)


def test_tiny_imagenet_that_contradicts_its_lists_is_named(tmp_path: Path) -> None:
    write_tiny_imagenet(tmp_path)
    (tmp_path / "val/images/v_1.JPEG").rename(tmp_path / "val/images/v_9.JPEG")
    text = str(read_source(str(tmp_path)).account.error(str(tmp_path)))
    assert "images of val_annotations.txt missing in val/images/: 1 (v_1.JPEG)" in text
    assert "left over: 1 (val/images/v_9.JPEG), without a class in val_annotations.txt" in text
    shutil.rmtree(tmp_path / "train/n02")
    assert "train: lacks n02, which wnids.txt has" in read_error(tmp_path)
    write_file(tmp_path / "val/val_annotations.txt", "v_1.JPEG\n")
    assert "val_annotations.txt: line 1 is not 'file wnid" in read_error(tmp_path)


@pytest.mark.parametrize("form", ["same name", "tar", "folder"])
def test_a_development_kit_that_a_browser_has_unpacked_is_read(tmp_path: Path, form: str) -> None:
    write_archives(tmp_path)
    before = read_source(str(tmp_path))
    path = tmp_path / DEVKIT
    unpacked = gzip.decompress(path.read_bytes())
    if form == "same name":
        path.write_bytes(unpacked)
    else:
        path.unlink()
    if form == "tar":
        path.with_suffix("").write_bytes(unpacked)
    if form == "folder":
        with tarfile.open(fileobj=io.BytesIO(unpacked)) as archive:
            archive.extractall(tmp_path / DEVKIT.removesuffix(".tar.gz"), filter="data")
    source = read_source(str(tmp_path))
    assert (source.index, source.labels) == (before.index, before.labels)
    assert source.account.error(str(tmp_path)) is None
    assert source.account.others == before.account.others + (form == "folder")


def named_parquet(root: Path, name_of: str, kind: pa.DataType) -> None:
    """The data set's images in files that Parquet files name; every third has its own bytes."""
    for split, split_name in (("train", "train"), ("val", "validation")):
        rows, labels = [], []
        paths = sorted((root / "plain" / split).glob("*/*"))
        for number, path in enumerate(paths):
            copy = root / "data/images" / path.name
            write_file(copy, path.read_bytes())
            name = {"relative": f"images/{path.name}", "absolute": str(copy)}[name_of]
            own = number % 3 == 2 and kind != pa.null()
            rows.append({"bytes": path.read_bytes() if own else None, "path": name})
            labels.append(path.parent.name)
        struct = pa.struct([("bytes", kind), ("path", pa.string())])
        table = pa.table({"image": pa.array(rows, struct), "label": labels})
        pq.write_table(table, root / f"data/{split_name}-00000-of-00001.parquet", row_group_size=2)


@pytest.mark.parametrize("name_of", ["relative", "absolute"])
@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary(), pa.null()])
def test_images_that_parquet_files_name_are_read(
    tmp_path: Path, name_of: str, kind: pa.DataType
) -> None:
    write_folders(tmp_path / "plain")
    named_parquet(tmp_path, name_of, kind)
    source = read_source(str(tmp_path / "data"))
    plain = contents_of(read_source(str(tmp_path / "plain")))
    assert contents_of(source) == plain
    if kind != pa.null():
        os.rename(tmp_path / "plain", tmp_path / "other")  # Only the copies are read.
        own = {path.name for path in (tmp_path / "data/images").iterdir()}
        assert len(own) == 8
    folder = str(tmp_path / "extracted")
    for path in parquet_extract.parquet_files(source.index):
        parquet_extract.extract_images(path, folder)
    index = parquet_extract.to_byte_ranges(source.index, folder)
    assert sorted(index["size"].to_pylist()) == sorted(len(row[3]) for row in plain.values())
    before = source.source_fingerprint
    write_file(tmp_path / "data/images/n01_1.JPEG", b"another image")
    assert read_source(str(tmp_path / "data")).source_fingerprint != before


def test_files_that_parquet_files_name_and_that_are_missing(tmp_path: Path) -> None:
    write_folders(tmp_path / "plain")
    named_parquet(tmp_path, "relative", pa.binary())
    (tmp_path / "data/images/n01_1.JPEG").unlink()
    source = read_source(str(tmp_path / "data"))
    assert "missing files that Parquet files name instead of images: 1 (images/n01_1.JPEG)" in str(
        source.account.error(str(tmp_path / "data"))
    )
    folder = str(tmp_path / "extracted")
    for path in parquet_extract.parquet_files(source.index):
        parquet_extract.extract_images(path, folder)
    index = parquet_extract.to_byte_ranges(source.index, folder)
    planned = source.__class__(
        layout="parquet",
        index=index,
        labels=source.labels,
        source_fingerprint="",
        account=source.account,
    )
    tasks = write_plan(str(tmp_path / "x"), planned, Encoding(kind="jpeg", jpeg_quality=95), 9, 0)
    rejects = {r["key"]: r["reason"] for task in tasks for r in make_shard(task).rejects}
    assert rejects["train/n01/n01_1.JPEG"] == "unreadable"


@pytest.mark.parametrize("names", [("train", "validation"), ("train", "val")])
def test_a_data_set_saved_to_disk_is_named(tmp_path: Path, names: tuple[str, str]) -> None:
    write_file(tmp_path / "dataset_dict.json", "{}")
    for name in names:
        for file in ("data-00000-of-00001.arrow", "dataset_info.json", "state.json"):
            write_file(tmp_path / name / file, "x")
    for root in (tmp_path, tmp_path / "train"):
        message = read_error(root)
        assert "was written by Dataset.save_to_disk" in message
        assert ".to_parquet(" in message


@pytest.mark.parametrize("extension", ["parquet", "csv", "jsonl"])
def test_the_metadata_of_an_image_folder_is_no_parquet_data_set(
    tmp_path: Path, extension: str
) -> None:
    write_folders(tmp_path / "sorted")
    for split in ("train", "val"):
        write_file(tmp_path / "sorted" / split / f"metadata.{extension}", b"PAR1")
        write_file(tmp_path / "flat" / split / f"metadata.{extension}", b"PAR1")
        write_file(tmp_path / "flat" / split / "1.png", b"x")
    source = read_source(str(tmp_path / "sorted"))
    assert source.layout == "folders"
    assert source.account.counts().ignored == {"document": 2}
    for _ in range(2):
        assert f"images whose classes are in metadata.{extension}" in read_error(tmp_path / "flat")
        if (tmp_path / "flat/val").exists():
            (tmp_path / "flat/val").rename(tmp_path / "flat/validation")


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12345\n"
PAGE = b"<!DOCTYPE html>\n<html><body>Please log in</body></html>"


@pytest.mark.parametrize("name", [TRAIN_ARCHIVE, VAL_ARCHIVE, DEVKIT])
@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (POINTER, "is a pointer of Git LFS, not the file itself; run `git lfs pull`"),
        (PAGE, "is a web page, as after a download without a login"),
        (b"", "is empty, as after an interrupted download"),
    ],
)
def test_what_stands_in_place_of_an_archive_is_named(
    tmp_path: Path, name: str, content: bytes, expected: str
) -> None:
    write_archives(tmp_path)
    write_file(tmp_path / name, content)
    assert f"{tmp_path / name}: {expected}" in read_error(tmp_path)


@pytest.mark.parametrize("name", ["LOC_synset_mapping.txt", "LOC_val_solution.csv"])
def test_what_stands_in_place_of_a_text_is_named(tmp_path: Path, name: str) -> None:
    write_kaggle(tmp_path)
    write_file(tmp_path / name, POINTER)
    assert "is a pointer of Git LFS" in read_error(tmp_path)


def test_a_parquet_file_that_is_a_web_page_is_named(tmp_path: Path) -> None:
    write_parquet(tmp_path)
    write_file(tmp_path / "data/train-00000-of-00002.parquet", PAGE)
    assert "train-00000-of-00002.parquet: is a web page" in read_error(tmp_path)


@pytest.mark.parametrize(("mode", "method"), [("w:gz", "gzip"), ("w:bz2", "bzip2"), ("w:xz", "xz")])
def test_compressed_archives_are_named(tmp_path: Path, mode: str, method: str) -> None:
    write_archives(tmp_path)
    val = {f"{name}.JPEG": content for name, content in TEXT_DATA_SET.val.items()}
    write_file(tmp_path / VAL_ARCHIVE, make_tar(val, mode))
    assert f"{VAL_ARCHIVE}: is compressed ({method}), but is read in place; decompress" in (
        read_error(tmp_path)
    )
    extension = mode.partition(":")[2]
    (tmp_path / VAL_ARCHIVE).rename(tmp_path / f"{VAL_ARCHIVE}.{extension}")
    assert f"{VAL_ARCHIVE}.{extension} is compressed or unfinished; finish or decompress" in (
        read_error(tmp_path)
    )


def test_a_compressed_class_archive_is_named(tmp_path: Path) -> None:
    write_archives(tmp_path)
    classes = {f"{wnid}.tar": make_tar(dict(TEXT_DATA_SET.train[wnid])) for wnid, _ in LABELS}
    classes["n02.tar"] = make_tar({"n02_7.JPEG": b"x"}, "w:gz")
    write_file(tmp_path / TRAIN_ARCHIVE, make_tar(classes))
    assert f"{TRAIN_ARCHIVE}: n02.tar: is compressed (gzip)" in read_error(tmp_path)


def test_a_folder_with_packed_files_is_named(tmp_path: Path) -> None:
    for name in ("tiny-imagenet-200.zip", "imagenette2.tgz"):
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            archive.writestr("x", "x")
    assert "contains packed files (imagenette2.tgz, tiny-imagenet-200.zip); unpack" in read_error(
        tmp_path
    )


@pytest.mark.parametrize(
    ("names", "ordered"),
    [
        (["0", "1", "10", "2", "9"], ["0", "1", "2", "9", "10"]),
        (["1", "10", "2", "2x"], ["1", "10", "2", "2x"]),
        (["000", "001", "010"], ["000", "001", "010"]),
        (["1", "²"], ["1", "²"]),
    ],
)
def test_classes_that_are_whole_numbers_are_ordered_as_numbers(
    tmp_path: Path, names: list[str], ordered: list[str]
) -> None:
    for name in names:
        for split in ("train", "val"):
            write_file(tmp_path / split / name / "x.JPEG", name)
    source = read_source(str(tmp_path))
    assert [label.wnid for label in source.labels] == ordered
    for wnid, label, content in [row[1:] for row in contents_of(source).values()]:
        assert (ordered[label], content.decode()) == (wnid, wnid)


def test_a_hub_cache_of_links_is_read(tmp_path: Path) -> None:
    write_parquet(tmp_path / "plain")
    revision = tmp_path / "hub/datasets--x--y/snapshots/0123abcd"
    for number, path in enumerate(sorted((tmp_path / "plain/data").iterdir())):
        blob = tmp_path / "hub/datasets--x--y/blobs" / f"{number:064x}"
        write_file(blob, path.read_bytes())
        (revision / "data").mkdir(parents=True, exist_ok=True)
        (revision / "data" / path.name).symlink_to(f"../../../blobs/{blob.name}")
    write_file(tmp_path / "hub/datasets--x--y/refs/main", "0123abcd")
    source = read_source(str(revision))
    assert contents_of(source) == contents_of(read_source(str(tmp_path / "plain")))
    assert source.account.error(str(revision)) is None
    message = read_error(tmp_path / "hub/datasets--x--y")
    assert message.endswith(f"but snapshots/0123abcd/ does; give {revision}")


def test_no_advice_has_a_second_line(tmp_path: Path) -> None:
    write_folders(tmp_path)
    write_file(tmp_path / "val/a\nb\x1b[31m.JPEG", b"x")
    error = read_source(str(tmp_path)).account.error(str(tmp_path))
    assert isinstance(error, UserError)
    assert re.search(r"\(val/a\?b\?\[31m\.JPEG\)", str(error))
