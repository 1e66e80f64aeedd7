"""Every file of a source is used, ignored by a named rule, or left over: nothing is lost."""

import contextlib
import io
import os
import random
import re
import tarfile
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from source_layouts import (
    TEXT_DATA_SET,
    WRITERS,
    contents_of,
    make_tar,
    write_archives,
    write_file,
    write_folders,
    write_kaggle,
    write_parquet,
    write_parquet_file,
)

from alexnet.errors import UnaccountedFilesError, UserError
from alexnet.sources.account import Account
from alexnet.sources.archives import VAL_ARCHIVE
from alexnet.sources.read import Source, read_source
from alexnet.sources.visible import visible_files


def files_in_tar(content: bytes) -> int:
    """Files in an archive and in the archives in it."""
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        members = [member for member in archive if not member.isdir()]
        inner = [archive.extractfile(m) for m in members if m.name.endswith(".tar")]
        return len(members) + sum(files_in_tar(file.read()) for file in inner if file)


def plain_walk(root: Path) -> int:
    """Files below a folder, in the image archives there, and rows of the Parquet files there."""
    count = 0
    for folder, _, names in os.walk(root, followlinks=True):
        for path in (Path(folder, name) for name in names):
            count += 1
            if re.fullmatch(r"ILSVRC2012_img_(train|val)\.tar", path.name):
                count += files_in_tar(path.read_bytes())
            elif re.fullmatch(r"(train|validation)-.*\.parquet", path.name):
                count += pq.read_metadata(path).num_rows
    return count


def check(root: Path) -> Source:
    """Read a source and compare its account with a plain walk."""
    source = read_source(str(root))
    counts = source.account.counts()
    assert counts.found == plain_walk(root)
    assert counts.found == counts.used + sum(counts.ignored.values())
    assert source.account.images == len(source.index)
    return source


def problem(root: Path) -> str:
    """What is left over or missing, in one line."""
    source = check(root)
    error = source.account.error(str(root))
    assert isinstance(error, UnaccountedFilesError)
    assert str(error).startswith(f"{root}: ")
    assert "\n" not in str(error)
    return str(error).removeprefix(f"{root}: ")


@pytest.mark.parametrize("layout", WRITERS)
def test_the_numbers_are_those_of_a_plain_walk(tmp_path: Path, layout: str) -> None:
    WRITERS[layout](tmp_path)
    source = check(tmp_path)
    assert source.account.error(str(tmp_path)) is None
    write_file(tmp_path / "README.md", "text")
    write_file(tmp_path / ".git/objects/ab/cdef", "object")
    write_file(tmp_path / "test/Thumbs.db", b"")
    write_file(tmp_path / "test/x.JPEG", b"no label")
    assert check(tmp_path).account.error(str(tmp_path)) is None
    write_file(tmp_path / "more/x.JPEG", b"of what?")
    write_file(tmp_path / "more.zip", b"PK")
    assert problem(tmp_path) == (
        "left over: 1 (more.zip), archives, which are not read here: unpack them, or move them "
        "out of the folder; left over: 1 (more/x.JPEG), not part of the data set: move them out "
        "of the folder"
    )


JUNK = (".DS_Store", "._x.JPEG", "Thumbs.db", "x.JPEG~", "readme.txt", "stray.JPEG", "x.part")
FOLDERS = (".git", "__MACOSX", "@eaDir", "odd", "n99", "test", "images", "n01")


@pytest.mark.parametrize("layout", WRITERS)
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.tuples(
            st.randoms(use_true_random=False),
            st.lists(st.sampled_from(FOLDERS), max_size=2),
            st.sampled_from(JUNK),
        ),
        max_size=6,
    )
)
def test_files_anywhere_are_accounted_for(
    tmp_path_factory: pytest.TempPathFactory,
    layout: str,
    junk: list[tuple[random.Random, list[str], str]],
) -> None:
    root = tmp_path_factory.mktemp("junk")
    WRITERS[layout](root)
    for chooser, folders, name in junk:
        places = sorted(path for path in [root, *root.rglob("*")] if path.is_dir())
        write_file(chooser.choice(places).joinpath(*folders, name), b"junk")
    with contextlib.suppress(UserError):  # A folder that looks like a class contradicts others.
        check(root)


def test_a_half_sorted_validation_set_is_not_taken_for_a_whole_one(tmp_path: Path) -> None:
    write_folders(tmp_path)
    for name in ("v_8.JPEG", "v_9.JPEG"):
        write_file(tmp_path / "val" / name, b"loose")
    text = problem(tmp_path)
    assert text == (
        "left over: 2 (val/v_8.JPEG, val/v_9.JPEG), beside the class folders: move each into the "
        "folder of its class"
    )
    (tmp_path / "val/n02/v_1.JPEG").rename(tmp_path / "val/v_1.JPEG")
    (tmp_path / "val/n02").rmdir()
    assert problem(tmp_path).startswith("class folders missing in val/: 1 (n02); left over: 3 (")


def test_what_is_left_of_unpacking_is_named(tmp_path: Path) -> None:
    write_folders(tmp_path)
    write_file(tmp_path / "train/n05.tar", make_tar({"n05_1.JPEG": b"x"}))
    write_file(tmp_path / VAL_ARCHIVE, make_tar({"v_9.JPEG": b"x"}))
    source = read_source(str(tmp_path))
    error = source.account.error(str(tmp_path))
    assert "left over: 2 (train/n05.tar, ILSVRC2012_img_val.tar), archives" in str(error)


def test_folders_beside_the_archives_are_named(tmp_path: Path) -> None:
    write_archives(tmp_path)
    write_folders(tmp_path)
    assert "left over: 8 (train/n01/n01_1.JPEG, train/n01/n01_2.JPEG, " in problem(tmp_path)


@pytest.mark.parametrize("beside", [None, "crdownload", "incomplete"])
def test_missing_parts_of_parquet_files_are_named(tmp_path: Path, beside: str | None) -> None:
    write_parquet(tmp_path)
    missing = tmp_path / "data/train-00001-of-00002.parquet"
    if beside:
        missing.rename(f"{missing}.{beside}")
    else:
        missing.unlink()
    (tmp_path / "data/validation-00000-of-00001.parquet").unlink()
    names = [label.wnid for label in TEXT_DATA_SET.labels]
    write_parquet_file(tmp_path / "data/validation-00002-of-00004.parquet", [("v", b"v", 0)], names)
    assert problem(tmp_path) == (
        "missing Parquet files: 4 (train-00001-of-00002.parquet, "
        "validation-00000-of-00004.parquet, validation-00001-of-00004.parquet, …)"
    )


def test_parts_of_two_versions_are_not_mixed(tmp_path: Path) -> None:
    write_parquet(tmp_path)
    (tmp_path / "data/train-00001-of-00002.parquet").rename(
        tmp_path / "data/train-00001-of-00003.parquet"
    )
    with pytest.raises(UserError, match=r"parts -of-00002 and -of-00003 are in one folder"):
        read_source(str(tmp_path))


@pytest.mark.parametrize("layout", ["folders", "kaggle", "tiny-imagenet"])
def test_a_dangling_link_is_a_row_and_a_dangling_class_is_named(
    tmp_path: Path, layout: str
) -> None:
    WRITERS[layout](tmp_path)
    for path in sorted(tmp_path.rglob("*_1.JPEG")):
        path.unlink()
        path.symlink_to("../.git/annex/objects/aa/bb/SHA256E-s1--x.JPEG")
    source = check(tmp_path)
    dangling = [row["key"] for row in source.index.to_pylist() if row["size"] < 0]
    assert len(dangling) == 2
    with pytest.raises(FileNotFoundError, match="a file that does not exist"):
        contents_of(source)
    train = next(path for path in tmp_path.rglob("train") if path.is_dir())
    (train / "n99").symlink_to("/nowhere/n99")
    assert "left over: 1 (" in problem(tmp_path)
    assert "train/n99), links to nothing: restore what they lead to" in problem(tmp_path)


def test_a_class_whose_training_images_are_a_dangling_link_is_named(tmp_path: Path) -> None:
    write_folders(tmp_path)
    for path in (tmp_path / "train/n02").iterdir():
        path.unlink()
    (tmp_path / "train/n02").rmdir()
    (tmp_path / "train/n02").symlink_to("/nowhere")
    with pytest.raises(UserError, match="train/n02: is a link to nothing; restore the folder"):
        read_source(str(tmp_path))


def test_a_split_of_dangling_links_is_named(tmp_path: Path) -> None:
    write_folders(tmp_path)
    for path in sorted((tmp_path / "val").glob("*/*")):
        path.unlink()
        path.symlink_to("/nowhere")
    with pytest.raises(UserError, match="split val, only 4 links to nothing; restore what they"):
        read_source(str(tmp_path))


def test_batch_inference_lists_dangling_links(tmp_path: Path) -> None:
    write_file(tmp_path / "a.JPEG", b"a")
    (tmp_path / "b.JPEG").symlink_to("nowhere")
    (tmp_path / "c").symlink_to(tmp_path)  # A loop.
    files = visible_files(str(tmp_path))
    assert [(file.path[len(str(tmp_path)) :], file.size) for file in files] == [
        ("/a.JPEG", 1),
        ("/b.JPEG", -1),
    ]


def test_a_file_counts_once_by_whatever_links_it_is_reached(tmp_path: Path) -> None:
    write_folders(tmp_path)
    before = read_source(str(tmp_path)).index
    (tmp_path / "train/n01/a.JPEG").symlink_to(tmp_path / "train/n01/n01_1.JPEG")
    (tmp_path / "train/n01/z.JPEG").symlink_to("n01_1.JPEG")
    source = check(tmp_path)
    assert len(source.index) == len(before)
    assert source.account.counts().ignored == {"another name of a used file": 2}
    assert source.account.error(str(tmp_path)) is None


def test_hard_links_are_files_of_their_own(tmp_path: Path) -> None:
    write_folders(tmp_path)
    for place in ("train/n01", "train/n02", "val/n02"):
        (tmp_path / place / "same.JPEG").hardlink_to(tmp_path / "train/n01/n01_1.JPEG")
    source = check(tmp_path)
    assert len(source.index) == 8 + 3
    assert source.account.counts().ignored == {}


@pytest.mark.parametrize("place", ["train/n02/x.JPEG", "val/n01/x.JPEG"])
def test_a_file_in_two_classes_or_splits_is_named(tmp_path: Path, place: str) -> None:
    write_folders(tmp_path)
    (tmp_path / place).symlink_to(tmp_path / "train/n01/n01_1.JPEG")
    text = problem(tmp_path)
    assert f"left over: 1 ({place}), links to an image of another class or split" in text


def test_the_files_that_links_lead_to_are_not_left_over(tmp_path: Path) -> None:
    """A cache beside the folders of links, as a copy of a hub cache has it."""
    write_folders(tmp_path)
    plain = contents_of(read_source(str(tmp_path)))
    (tmp_path / "blobs").mkdir()
    images = sorted(tmp_path.rglob("*.JPEG"))
    for number, path in enumerate(images):
        path.rename(tmp_path / "blobs" / f"{number:064x}")
        path.symlink_to(f"../../blobs/{number:064x}")
    source = check(tmp_path)
    assert contents_of(source) == plain
    assert source.account.error(str(tmp_path)) is None
    assert source.account.counts().ignored == {"another name of a used file": len(images)}


def test_linked_class_folders_and_loops_are_read(tmp_path: Path) -> None:
    write_folders(tmp_path / "elsewhere")
    for split in ("train", "val"):
        (tmp_path / "data" / split).mkdir(parents=True)
        for folder in (tmp_path / "elsewhere" / split).iterdir():
            (tmp_path / "data" / split / folder.name).symlink_to(folder)
    plain = contents_of(read_source(str(tmp_path / "elsewhere")))
    assert contents_of(check(tmp_path / "data")) == plain
    (tmp_path / "elsewhere/train/n01/up").symlink_to("..")
    source = read_source(str(tmp_path / "data"))
    assert contents_of(source) == plain
    assert source.account.error(str(tmp_path)) is None


def test_a_folder_inside_a_class_is_named(tmp_path: Path) -> None:
    write_folders(tmp_path)
    write_file(tmp_path / "train/n01/n02/x.JPEG", b"dragged there")
    write_file(tmp_path / "train/n01/notes/x.txt", b"text")
    assert problem(tmp_path) == (
        "left over: 1 (train/n01/n02/x.JPEG), in a folder inside a class that has images itself: "
        "move them into the class's own folder, or the folder out of the class"
    )
    write_file(tmp_path / "train/n03/n03/x.JPEG", b"unpacked twice")
    with pytest.raises(UserError, match=r"train/n03: contains no images, but folders with 1 files"):
        read_source(str(tmp_path))


def test_images_in_folders_inside_all_classes_are_read_and_the_user_is_told(
    tmp_path: Path,
) -> None:
    for wnid, images in TEXT_DATA_SET.train.items():
        write_file(tmp_path / "train" / wnid / "license.txt", b"text")
        for name, content in images.items():
            write_file(tmp_path / "train" / wnid / "deep/er" / name, content)
    data = TEXT_DATA_SET._replace(train={})
    write_folders(tmp_path, data)
    source = check(tmp_path)
    assert source.index["key"].to_pylist()[0] == "train/n01/deep/er/n01_1.JPEG"
    assert source.account.counts().ignored == {"document": 3}
    assert source.account.notes == [
        "classes of train/ have their images in folders inside, such as n01/deep/er/"
    ]


def test_images_without_a_label_and_labels_without_an_image_are_named(tmp_path: Path) -> None:
    write_kaggle(tmp_path)
    val = tmp_path / "ILSVRC/Data/CLS-LOC/val"
    (val / "v_2.JPEG").rename(val / "v_9.JPEG")
    assert problem(tmp_path) == (
        "images of LOC_val_solution.csv missing in val/: 1 (v_2); left over: 1 "
        "(ILSVRC/Data/CLS-LOC/val/v_9.JPEG), not in LOC_val_solution.csv: move them out"
    )


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:{:064x}\nsize 12345\n"


@pytest.mark.parametrize("layout", ["archives", "kaggle", "folders", "tiny-imagenet"])
@pytest.mark.parametrize("content", [POINTER, "/annex/objects/SHA256E-s12--{:064x}.JPEG\n"])
def test_pointers_are_named(tmp_path: Path, layout: str, content: str) -> None:
    train = {
        wnid: {name: content.format(n).encode() for n, name in enumerate(images)}
        for wnid, images in TEXT_DATA_SET.train.items()
    }
    WRITERS[layout](tmp_path, TEXT_DATA_SET._replace(train=train))
    text = problem(tmp_path)
    assert text.startswith("images not downloaded (each is a pointer of ")
    assert re.search(r"run `git (lfs pull|annex get)` in the repository\): 4 \(train/n01/", text)


def test_a_workdir_inside_the_source_is_no_part_of_it(tmp_path: Path) -> None:
    write_folders(tmp_path)
    write_file(tmp_path / "work/shards/0/train/part-00000.parquet", b"PAR1")
    source = read_source(str(tmp_path), outside=str(tmp_path / "work"))
    assert source.account.counts().ignored == {"working folder": 1}
    assert source.account.error(str(tmp_path)) is None
    assert read_source(str(tmp_path)).account.error(str(tmp_path))
    inside = read_source(str(tmp_path), outside=str(tmp_path.parent))
    assert inside.account.error(str(tmp_path)), "the source is in the working folder"


def test_special_files_and_unreadable_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_folders(tmp_path)
    os.mkfifo(tmp_path / "train/n01/pipe.JPEG")
    (tmp_path / "lost+found").mkdir()
    (tmp_path / "train/n02/closed").mkdir()
    scandir = os.scandir

    def deny(path: str | bytes) -> object:
        if os.fsdecode(path).endswith(("lost+found", "closed")):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", deny)
    with pytest.raises(UserError, match=r"train/n02/closed: permission denied"):
        read_source(str(tmp_path))
    (tmp_path / "train/n02/closed").rmdir()
    assert read_source(str(tmp_path)).account.counts().ignored == {"pipe, socket or device": 1}


def test_counts_in_words() -> None:
    account = Account(images=5, others=2)
    account.ignored.update({"macOS": 2, "hidden": 0})
    account.add_unused("beside", ["/x/a"])
    assert account.counts(1).in_words() == (
        "10 files: 6 used, 1 rejected, 3 ignored (left over 1, macOS 2)"
    )
