"""Labels from the development kit and from Kaggle's files."""

import gzip
import hashlib
import io
import os
import shutil
import tarfile
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.io import savemat
from torchvision.datasets import imagenet

from alexnet.errors import UserError
from alexnet.sources import labels
from alexnet.sources.labels import (
    Label,
    name_of_wnid,
    read_devkit,
    read_synset_mapping,
    read_validation_solution,
)

REAL_DATA = os.environ.get("ALEXNET_REAL_DATA")
DEVKIT = "ILSVRC2012_devkit_t12.tar.gz"

# ID, wnid, name, number of children. IDs are not in wnid order; the last row is not a class.
SYNSETS = [
    (1, "n00000003", "crane", 0),
    (2, "n00000001", "tench, Tinca tinca", 0),
    (3, "n00000002", "crane", 0),
    (4, "n00000009", "animal", 3),
]


def meta_mat(synsets: list[tuple[Any, ...]] = SYNSETS) -> bytes:
    fields = ("ILSVRC2012_ID", "WNID", "words", "num_children")
    rows = np.array(synsets, dtype=[(field, object) for field in fields])
    buffer = io.BytesIO()
    savemat(buffer, {"synsets": rows.reshape(-1, 1)})
    return buffer.getvalue()


def write_devkit(folder: Path, files: dict[str, bytes], mode: str = "w:gz") -> str:
    path = folder / DEVKIT
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return str(path)


def truth(text: bytes, meta: bytes | None = None) -> dict[str, bytes]:
    return {
        "kit/data/meta.mat": meta_mat() if meta is None else meta,
        "kit/data/ILSVRC2012_validation_ground_truth.txt": text,
    }


def test_devkit_classes_are_in_wnid_order_and_the_truth_has_class_indices(tmp_path: Path) -> None:
    devkit = read_devkit(write_devkit(tmp_path, truth(b"1\n2\n3\n1\n")))
    assert devkit.labels == (
        Label("n00000001", "tench, Tinca tinca"),
        Label("n00000002", "crane"),
        Label("n00000003", "crane"),
    )
    assert devkit.validation == (2, 0, 1, 2)
    assert devkit.ids == (2, 3, 1)


def test_devkit_with_a_single_class(tmp_path: Path) -> None:
    files = truth(b"7\n7\n", meta_mat([(7, "n1", "only", 0)]))
    devkit = read_devkit(write_devkit(tmp_path, files))
    assert (devkit.labels, devkit.validation) == ((Label("n1", "only"),), (0, 0))


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (truth(b"1\n4\n"), "'4', which is not the ILSVRC2012_ID"),
        (truth(b"1\none\n"), "'one', which is not the ILSVRC2012_ID"),
        (truth(b"1\n", b"MATLAB 5.0 without content"), "meta.mat can't be read"),
        (truth(b"1\n", meta_mat([(1, "n1", "inner", 2)])), "lists no class"),
        (truth(b"1\n", meta_mat([(1, "n1", "a", 0), (2, "n1", "a", 0)])), "a class twice"),
        ({"kit/data/meta.mat": meta_mat()}, "contains no ILSVRC2012_validation_ground_truth.txt"),
        ({"kit/readme.txt": b"nothing"}, "contains no meta.mat"),
    ],
)
def test_an_incomplete_or_contradictory_devkit_raises_an_error(
    tmp_path: Path, files: dict[str, bytes], expected: str
) -> None:
    path = write_devkit(tmp_path, files)
    with pytest.raises(UserError, match=expected) as caught:
        read_devkit(path)
    assert str(caught.value).startswith(path)
    assert "\n" not in str(caught.value)


def test_a_devkit_that_is_not_a_tar_gz_raises_an_error(tmp_path: Path) -> None:
    path = str(tmp_path / DEVKIT)
    whole = Path(write_devkit(tmp_path, truth(b"1\n"))).read_bytes()
    Path(path).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"not a readable tar\.gz"):
        read_devkit(path)
    with pytest.raises(UserError, match=r"not a readable tar\.gz"):
        read_devkit(str(tmp_path / "missing.tar.gz"))


def test_a_devkit_that_is_too_large_raises_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(labels, "MAX_DEVKIT_BYTES", 2**20)
    path = write_devkit(tmp_path, truth(b"1\n") | {"more": bytes(2**25)})
    tracemalloc.start()
    with pytest.raises(UserError, match="contains more than 1,048,576 bytes"):
        read_devkit(path)
    assert tracemalloc.get_traced_memory()[1] < 2**23
    tracemalloc.stop()


@pytest.mark.parametrize("kind", [tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE, tarfile.REGTYPE])
def test_a_devkit_with_wrong_headers_raises_an_error(tmp_path: Path, kind: bytes) -> None:
    member = tarfile.TarInfo("kit/data/meta.mat")
    member.size, member.type = 2**40, kind
    with gzip.open(tmp_path / DEVKIT, "wb") as file:
        file.write(member.tobuf(tarfile.GNU_FORMAT) * 2000)
    with pytest.raises(UserError, match=DEVKIT) as caught:
        read_devkit(str(tmp_path / DEVKIT))
    assert "\n" not in str(caught.value)


def test_synset_mapping_is_sorted_by_wnid_and_keeps_whole_names(tmp_path: Path) -> None:
    path = tmp_path / "LOC_synset_mapping.txt"
    path.write_text("n02 crane\nn01 tench, Tinca tinca\n")
    labels = read_synset_mapping(str(path))
    assert labels == (Label("n01", "tench, Tinca tinca"), Label("n02", "crane"))


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"n01 tench\nn02\n", "line 2"),
        (b"n01 tench\nn01 tench\n", "twice"),
        (b"", "no class"),
        (b"\xff\xfa", "can't be read"),
    ],
)
def test_a_wrong_synset_mapping_raises_an_error(
    tmp_path: Path, content: bytes, expected: str
) -> None:
    path = tmp_path / "LOC_synset_mapping.txt"
    path.write_bytes(content)
    with pytest.raises(UserError, match=expected):
        read_synset_mapping(str(path))


def test_validation_solution_takes_the_class_of_the_first_box(tmp_path: Path) -> None:
    path = tmp_path / "LOC_val_solution.csv"
    path.write_text("ImageId,PredictionString\nv_2,n02 1 2 3 4 n02 5 6 7 8 \nv_1,n01 1 2 3 4 \n")
    assert read_validation_solution(str(path)) == {"v_2": "n02", "v_1": "n01"}


@pytest.mark.parametrize("content", ["Id,Text\na,b\n", "ImageId,PredictionString\nv_1\n"])
def test_a_wrong_validation_solution_raises_an_error(tmp_path: Path, content: str) -> None:
    path = tmp_path / "LOC_val_solution.csv"
    path.write_text(content)
    with pytest.raises(UserError, match="line 2 has no"):
        read_validation_solution(str(path))
    with pytest.raises(UserError, match="can't be read"):
        read_validation_solution(str(tmp_path / "missing.csv"))


def test_only_imagenette_classes_get_other_names() -> None:
    assert name_of_wnid("n03888257") == "parachute, chute"
    assert name_of_wnid("n03888258") == "n03888258"


@pytest.mark.skipif(not REAL_DATA, reason="ALEXNET_REAL_DATA is not set")
def test_real_devkit_agrees_with_torchvision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = Path(str(REAL_DATA), "ilsvrc2012-ten", DEVKIT)
    shutil.copy(path, tmp_path)
    md5 = hashlib.md5(path.read_bytes()).hexdigest()
    monkeypatch.setitem(imagenet.ARCHIVE_META, "devkit", (DEVKIT, md5))
    imagenet.parse_devkit_archive(str(tmp_path))
    words, val_wnids = torch.load(tmp_path / imagenet.META_FILE, weights_only=True)
    devkit = read_devkit(str(path))
    assert {label.wnid: tuple(label.name.split(", ")) for label in devkit.labels} == words
    assert [label.wnid for label in devkit.labels] == sorted(words)
    assert [devkit.labels[index].wnid for index in devkit.validation] == val_wnids
    assert all(name_of_wnid(label.wnid) == label.name for label in devkit.labels)
