"""What systems and programs leave lying about is ignored and counted, wherever it stands."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from source_layouts import TEXT_DATA_SET, make_tar, write_archives, write_file, write_folders

from alexnet.sources.archives import TRAIN_ARCHIVE, VAL_ARCHIVE
from alexnet.sources.ignored import ignoring_rule
from alexnet.sources.read import read_source
from alexnet.sources.visible import visible_files

IGNORED = {
    "macOS": ["._n01_1.JPEG", ".DS_Store", "__MACOSX", ".Spotlight-V100", "Icon\r"],
    "Windows": ["Thumbs.db", "DESKTOP.INI", "$RECYCLE.BIN", "x.lnk", "x.JPEG:Zone.Identifier"],
    "NAS or file system": ["@eaDir", "#recycle", "@Recycle", ".@__thumb", "lost+found"],
    "photo software": ["Picasa.ini", ".picasaoriginals", "x.xmp", "x.AAE", "x.jpg_original"],
    "editor backup": ["x.JPEG~", "#x.JPEG#", "x.JPEG.bak", ".x.JPEG.swp", "x.orig"],
    "unfinished download": ["x.JPEG.crdownload", "x.part", "x.aria2", "x.incomplete", "x.tmp"],
    "notebook checkpoint": [".ipynb_checkpoints"],
    "version control": [".git", ".svn", "CVS", "x.JPEG.dvc", ".gitattributes"],
    "Python": ["__pycache__", "x.pyc"],
    "hidden": [".cache", ".nfs0001", ".x.JPEG.AbC123"],
}
DATA = ["n01_1.JPEG", "#1.JPEG", "~x.JPEG", "a.b~c.png", "original", "tmp", "part", "git", "thumbs"]


@pytest.mark.parametrize(
    ("rule", "name"), [(rule, name) for rule, names in IGNORED.items() for name in names]
)
def test_a_name_is_ignored_by_its_rule_in_any_case_and_as_a_folder(rule: str, name: str) -> None:
    for variant in (name, name.lower(), name.upper()):
        assert ignoring_rule([variant]) == rule
        assert ignoring_rule(["n01", variant, "n01_1.JPEG"]) == rule


@pytest.mark.parametrize("name", DATA)
def test_names_of_images_and_classes_are_not_ignored(name: str) -> None:
    assert ignoring_rule([name, name]) is None


@given(st.integers(0, 10**8), st.sampled_from(["JPEG", "jpg", "png", "webp", "gif", "bmp"]))
def test_usual_names_of_images_are_not_ignored(number: int, extension: str) -> None:
    for name in (f"n{number:08d}_{number}.{extension}", f"IMG_{number}.{extension}", str(number)):
        assert ignoring_rule([name]) is None


NAMES = [(rule, names[0]) for rule, names in IGNORED.items()]


@pytest.mark.parametrize(("rule", "name"), NAMES)
@pytest.mark.parametrize(
    "place", ["", "train", "train/n01", "val/n02", "train/n01/{}", "{}", "val/{}"]
)
def test_folders_are_read_without_ignored_files(
    tmp_path: Path, rule: str, name: str, place: str
) -> None:
    write_folders(tmp_path)
    before = read_source(str(tmp_path))
    below = place.format(name)
    write_file(tmp_path / below / ("x.JPEG" if below != place else name), b"left behind")
    source = read_source(str(tmp_path))
    assert source.index == before.index
    assert source.account.ignored == {rule: 1}
    assert source.account.error(str(tmp_path)) is None


def test_archives_are_read_without_ignored_members_and_archives(tmp_path: Path) -> None:
    write_archives(tmp_path)
    before = read_source(str(tmp_path))
    junk = {"._n01_1.JPEG": b"fork", "__MACOSX/n01/x.JPEG": b"fork", ".DS_Store": b"view"}
    train = {
        f"{wnid}.tar": make_tar({**TEXT_DATA_SET.train[wnid], **junk})
        for wnid in TEXT_DATA_SET.train
    }
    write_file(
        tmp_path / TRAIN_ARCHIVE, make_tar(train | {"._n01.tar": b"fork", "x/Thumbs.db": b""})
    )
    val = {f"{name}.JPEG": content for name, content in TEXT_DATA_SET.val.items()}
    write_file(tmp_path / VAL_ARCHIVE, make_tar(val | {"._v_1.JPEG": b"fork"}))
    source = read_source(str(tmp_path))
    assert source.index["key"] == before.index["key"]
    assert source.account.ignored == {"macOS": 3 * 3 + 1 + 1, "Windows": 1}
    assert source.account.others == 3 + 3


@pytest.mark.parametrize(("rule", "name"), NAMES)
def test_batch_inference_lists_no_ignored_file(tmp_path: Path, rule: str, name: str) -> None:
    for path in ("a.JPEG", name, f"{name} folder/b.JPEG", f"c/{name}", f"c/{name}.d/e.JPEG"):
        if not (tmp_path / path).exists():
            write_file(tmp_path / path, b"x")
    listed = {file.path for file in visible_files(str(tmp_path))}
    assert str(tmp_path / "a.JPEG") in listed
    assert not any(ignoring_rule(path.split("/")) for path in listed)
