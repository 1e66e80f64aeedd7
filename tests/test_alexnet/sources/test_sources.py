"""One small data set in every form; and what is said when a source is not whole."""

import io
import json
import os
import shutil
import tarfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from scipy.io import savemat

from alexnet import storage
from alexnet.errors import UserError
from alexnet.sources.index import SCHEMA
from alexnet.sources.labels import Label
from alexnet.sources.read import DEVKIT, TRAIN_ARCHIVE, VAL_ARCHIVE, Source, read_image, read_source

REAL_DATA = os.environ.get("ALEXNET_REAL_DATA")


class DataSet(NamedTuple):
    """A data set that can be written in every form."""

    labels: tuple[Label, ...]
    train: Mapping[str, Mapping[str, bytes]]
    """Contents by class and file name."""
    val: Mapping[str, bytes]
    val_wnids: Mapping[str, str]
    ids: Mapping[str, int]
    """ILSVRC2012_ID by class."""


LABELS = (Label("n01", "tench, Tinca tinca"), Label("n02", "crane"), Label("n02-b", "crane"))
SMALL = DataSet(
    labels=LABELS,
    train={
        "n01": {"n01_1.JPEG": b"t one", "n01_2.JPEG": b""},
        "n02": {"n02_7.JPEG": b"t crane"},
        "n02-b": {"n02-b_3.JPEG": b"t other crane"},
    },
    # In name order: classes 1, 0, 2, 0. The archive has another order.
    val={"v_3": b"v c", "v_1": b"v a", "v_4": b"v d", "v_2": b"v b"},
    val_wnids={"v_1": "n02", "v_2": "n01", "v_3": "n02-b", "v_4": "n01"},
    ids={"n01": 3, "n02": 1, "n02-b": 2},
)


def pictures() -> DataSet:
    """Pictures that can be decoded, but for one."""
    random = np.random.default_rng(2012)

    def picture() -> bytes:
        buffer = io.BytesIO()
        coarse = Image.fromarray(random.integers(0, 256, (5, 6, 3), np.uint8))
        size = tuple(random.integers(200, 340, 2).tolist())
        coarse.resize(size, Image.Resampling.BICUBIC).save(buffer, "JPEG")
        return buffer.getvalue()

    train = {wnid: {f"{wnid}_{n}.JPEG": picture() for n in range(4)} for wnid, _ in LABELS}
    train["n02"]["n02_1.JPEG"] = train["n02"]["n02_1.JPEG"][:1000]
    val = {name: picture() for name in SMALL.val}
    return SMALL._replace(train=train, val=val)


def tar(contents: Mapping[str, bytes], mode: str = "w") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:  # type: ignore[call-overload]
        for name, content in contents.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def write(path: Path, content: bytes | str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


def write_archives(root: Path, data: DataSet = SMALL) -> None:
    write(
        root / TRAIN_ARCHIVE,
        tar({f"{wnid}.tar": tar(data.train[wnid]) for wnid in sorted(data.train, reverse=True)}),
    )
    write(root / VAL_ARCHIVE, tar({f"{name}.JPEG": content for name, content in data.val.items()}))
    fields = ("ILSVRC2012_ID", "WNID", "words", "num_children")
    rows = [(data.ids[wnid], wnid, name, 0) for wnid, name in data.labels]
    meta = io.BytesIO()
    synsets = np.array(sorted(rows), dtype=[(field, object) for field in fields])
    savemat(meta, {"synsets": synsets.reshape(-1, 1)})
    truth = "".join(f"{data.ids[data.val_wnids[name]]}\n" for name in sorted(data.val))
    kit = {
        "d/meta.mat": meta.getvalue(),
        "d/ILSVRC2012_validation_ground_truth.txt": truth.encode(),
    }
    write(root / DEVKIT, tar(kit, "w:gz"))


def write_kaggle(root: Path, data: DataSet = SMALL) -> None:
    images = root / "ILSVRC/Data/CLS-LOC"
    for wnid, contents in data.train.items():
        for name, content in contents.items():
            write(images / "train" / wnid / name, content)
    for name, content in data.val.items():
        write(images / "val" / f"{name}.JPEG", content)
    write(images / "test" / "unlabelled.JPEG", b"not to be found")
    write(
        root / "LOC_synset_mapping.txt", "".join(f"{wnid} {name}\n" for wnid, name in data.labels)
    )
    lines = [f"{name},{wnid} 1 2 3 4 \n" for name, wnid in data.val_wnids.items()]
    write(root / "LOC_val_solution.csv", "ImageId,PredictionString\n" + "".join(lines))


def write_folders(root: Path, data: DataSet = SMALL) -> None:
    for wnid, contents in data.train.items():
        for name, content in contents.items():
            write(root / "train" / wnid / name, content)
    for name, content in data.val.items():
        write(root / "val" / data.val_wnids[name] / f"{name}.JPEG", content)


def write_parquet(root: Path, data: DataSet = SMALL) -> None:
    """As the Hub's ``datasets`` writes it, in several files and small row groups."""
    index_of = {label.wnid: index for index, label in enumerate(data.labels)}
    train = [
        (f"{name}", content, index_of[wnid])
        for wnid, contents in data.train.items()
        for name, content in contents.items()
    ]
    val = [(f"{name}.JPEG", data.val[name], index_of[data.val_wnids[name]]) for name in data.val]
    names = [label.wnid for label in data.labels]
    write_parquet_file(root / "data/train-00000-of-00002.parquet", train[:2], names)
    write_parquet_file(root / "data/train-00001-of-00002.parquet", train[2:], names)
    write_parquet_file(root / "data/validation-00000-of-00001.parquet", val, names)
    write_parquet_file(root / "data/test-00000-of-00001.parquet", [("x", b"x", -1)], names)


def write_parquet_file(
    path: Path,
    rows: Sequence[tuple[str | None, bytes | None, int | str | None]],
    names: Sequence[str] | None,
) -> None:
    """One Parquet file of (path, bytes, label), with the classes' names in its metadata."""
    images = [{"bytes": content, "path": name} for name, content, _ in rows]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    labels = pa.array([label for *_, label in rows])
    table = pa.table({"image": pa.array(images, kind), "label": labels})
    if names is not None:
        features = {"label": {"names": list(names), "_type": "ClassLabel"}}
        text = json.dumps({"info": {"features": features}})
        table = table.replace_schema_metadata({"huggingface": text})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=2)


WRITERS: dict[str, Callable[..., None]] = {
    "archives": write_archives,
    "kaggle": write_kaggle,
    "folders": write_folders,
    "parquet": write_parquet,
}


def contents_of(source: Source) -> dict[str, tuple[str, str, int, bytes]]:
    return {
        row["key"]: (row["split"], row["wnid"], row["label"], read_image(source, row))
        for row in source.index.to_pylist()
    }


def refusal(root: Path) -> str:
    with pytest.raises(UserError) as caught:
        read_source(str(root))
    message = str(caught.value)
    assert message.startswith(str(root))
    assert "\n" not in message
    return message


@pytest.mark.parametrize("form", WRITERS)
def test_every_form_gives_the_same_images_and_classes(tmp_path: Path, form: str) -> None:
    WRITERS[form](tmp_path)
    source = read_source(str(tmp_path))
    assert source.form == form
    index_of = {label.wnid: index for index, label in enumerate(LABELS)}
    expected = {
        f"train/{wnid}/{name}": ("train", wnid, index_of[wnid], content)
        for wnid, contents in SMALL.train.items()
        for name, content in contents.items()
    }
    with_folders = form in ("folders", "parquet")
    for name, content in SMALL.val.items():
        wnid = SMALL.val_wnids[name]
        key = f"val/{wnid}/{name}.JPEG" if with_folders else f"val/{name}.JPEG"
        expected[key] = ("val", wnid, index_of[wnid], content)
    assert contents_of(source) == expected
    assert source.index.schema == SCHEMA
    keys = source.index["key"].to_pylist()
    assert keys == sorted(expected)
    names = LABELS if not with_folders else tuple(Label(wnid, wnid) for wnid, _ in LABELS)
    assert source.labels == names


@pytest.mark.parametrize("form", WRITERS)
def test_fingerprint_follows_the_files_but_not_their_place(tmp_path: Path, form: str) -> None:
    WRITERS[form](tmp_path / "here")
    before = read_source(str(tmp_path / "here"))
    shutil.copytree(tmp_path / "here", tmp_path / "there")
    assert read_source(str(tmp_path / "there")).fingerprint == before.fingerprint
    seen = {before.fingerprint}
    for path in sorted(path for path in (tmp_path / "here").rglob("*") if path.is_file()):
        if path.parent.name == "test" or path.name.startswith("test"):
            continue
        os.utime(path, ns=(0, 0))
        fingerprint = read_source(str(tmp_path / "here")).fingerprint
        assert fingerprint not in seen, path
        seen.add(fingerprint)


def test_folders_take_files_at_any_depth_and_ignore_litter(tmp_path: Path) -> None:
    write_folders(tmp_path)
    write(tmp_path / "train/n01/more/deep.txt", b"deep")
    for name in (".hidden", ".DS_Store", "Thumbs.db", ".cache/x.JPEG"):
        write(tmp_path / "train/n01" / name, b"litter")
    write(tmp_path / "train/.ipynb_checkpoints/x.JPEG", b"litter")
    write(tmp_path / "train/readme.txt", b"litter")
    found = contents_of(read_source(str(tmp_path)))
    assert found["train/n01/more/deep.txt"] == ("train", "n01", 0, b"deep")
    assert len(found) == 4 + 1 + 4


def test_imagenette_folders_get_their_words(tmp_path: Path) -> None:
    for split in ("train", "val"):
        write(tmp_path / split / "n01440764" / "x.JPEG", b"x")
        write(tmp_path / split / "cat" / "x.JPEG", b"x")
    labels = read_source(str(tmp_path)).labels
    assert labels == (Label("cat", "cat"), Label("n01440764", "tench, Tinca tinca"))


def test_an_unpacked_data_set_beside_its_devkit_is_read_as_folders(tmp_path: Path) -> None:
    write_folders(tmp_path)
    write(tmp_path / DEVKIT, b"whatever")
    assert read_source(str(tmp_path)).form == "folders"


def test_a_source_that_is_nothing_is_explained(tmp_path: Path) -> None:
    assert "no such folder" in refusal(tmp_path / "missing")
    write(tmp_path / "file.tar", b"x")
    assert "is a file" in refusal(tmp_path / "file.tar")
    message = refusal(tmp_path)
    assert all(
        form in message for form in (TRAIN_ARCHIVE, "ILSVRC/Data/CLS-LOC/", "train/ and val/")
    )
    write_folders(tmp_path)
    (tmp_path / "val").rename(tmp_path / "validation")
    assert "rename validation/ to val/" in refusal(tmp_path)


@pytest.mark.parametrize("missing", [TRAIN_ARCHIVE, VAL_ARCHIVE, DEVKIT])
def test_the_missing_archive_is_named(tmp_path: Path, missing: str) -> None:
    write_archives(tmp_path)
    (tmp_path / missing).unlink()
    assert f"{missing} is missing" in refusal(tmp_path)


@pytest.mark.parametrize("form", ["archives", "parquet"])
def test_classes_may_differ_in_case_alone(tmp_path: Path, form: str) -> None:
    """Nothing is unpacked, so no file system confuses them."""
    labels = tuple(Label(wnid, "crane") for wnid in ("CAT", "Cat", "cat"))
    data = DataSet(
        labels=labels,
        train={wnid: {"x.JPEG": wnid.encode()} for wnid, _ in labels},
        val={"v": b"v"},
        val_wnids={"v": "Cat"},
        ids={"CAT": 1, "Cat": 2, "cat": 3},
    )
    WRITERS[form](tmp_path, data)
    contents = contents_of(read_source(str(tmp_path)))
    assert {key: row[1:] for key, row in contents.items() if row[0] == "train"} == {
        f"train/{wnid}/x.JPEG": (wnid, number, wnid.encode())
        for number, (wnid, _) in enumerate(labels)
    }


def test_a_key_stays_on_its_line(tmp_path: Path) -> None:
    write_folders(tmp_path)
    write(tmp_path / "train/n01/a\n\x1b[31mb.JPEG", b"odd")
    contents = contents_of(read_source(str(tmp_path)))
    assert contents[r"train/n01/a\x0a\x1b[31mb.JPEG"] == ("train", "n01", 0, b"odd")


def test_both_places_of_a_repeated_key_are_named(tmp_path: Path) -> None:
    write_archives(tmp_path)
    repack(tmp_path, TRAIN_ARCHIVE, n02__tar=tar({"a/x\ny": b"1", "b/x\ny": b"2"}))
    path = tmp_path / TRAIN_ARCHIVE
    with tarfile.open(path) as archive:
        start = archive.getmember("n02.tar").offset_data
    assert refusal(tmp_path) == (
        rf"{path}: train/n02/x\x0ay lies at byte {start + 512} and again in {path} at byte "
        f"{start + 1536}; remove one of them"
    )


def repack(root: Path, name: str, **changes: bytes | None) -> None:
    """Replace, add or (None) remove members of an archive; ``__`` in a name stands for a dot."""
    with tarfile.open(root / name) as archive:
        files = {m.name: archive.extractfile(m).read() for m in archive}  # type: ignore[union-attr]
    for member, content in changes.items():
        files.pop(member.replace("__", "."), None)
        if content is not None:
            files[member.replace("__", ".")] = content
    write(root / name, tar(files))


@pytest.mark.parametrize(
    ("name", "changes", "complaint"),
    [
        (
            TRAIN_ARCHIVE,
            {"n99__tar": tar({"x": b"x"})},
            f"holds n99.tar, which {DEVKIT} does not have",
        ),
        (TRAIN_ARCHIVE, {"n02__tar": None, "n02": tar({"x": b"x"})}, "lacks n02.tar"),
        (TRAIN_ARCHIVE, {"n02__tar": None}, f"lacks n02.tar, which {DEVKIT} has"),
        (TRAIN_ARCHIVE, {"n02__tar": tar({})}, "n02.tar: holds no images"),
        (TRAIN_ARCHIVE, {"n02__tar": tar({"a/..": b"1"})}, "n02.tar: damaged"),
        (TRAIN_ARCHIVE, {"n02__tar": tar({"x": b"x"})[:700]}, "truncated"),
        (VAL_ARCHIVE, {"v_5__JPEG": b"more"}, "holds 5 images, but"),
        (VAL_ARCHIVE, {"v_4__JPEG": None}, "devkit does not match"),
    ],
)
def test_archives_that_do_not_fit_are_refused(
    tmp_path: Path, name: str, changes: dict[str, bytes | None], complaint: str
) -> None:
    write_archives(tmp_path)
    repack(tmp_path, name, **changes)
    message = refusal(tmp_path)
    assert name in message
    assert complaint in message


def test_an_empty_class_folder_and_an_unknown_class_are_refused(tmp_path: Path) -> None:
    write_folders(tmp_path)
    (tmp_path / "train/empty").mkdir()
    assert "train/empty: holds no images" in refusal(tmp_path)
    (tmp_path / "train/empty").rename(tmp_path / "val/extra")
    assert "val/extra: train/ has no such class" in refusal(tmp_path)
    shutil.rmtree(tmp_path / "val")
    write(tmp_path / "val/x.JPEG", b"flat")
    assert "val: holds no class folders" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("path", "content", "complaint"),
    [
        ("LOC_synset_mapping.txt", None, "LOC_synset_mapping.txt: can't be read"),
        ("LOC_val_solution.csv", None, "LOC_val_solution.csv: can't be read"),
        ("LOC_synset_mapping.txt", "n01 tench\nn02 crane\n", "does not have (they do not match)"),
        (
            "LOC_val_solution.csv",
            "ImageId,PredictionString\nv_1,n77 1 2 3 4\n",
            "LOC_val_solution.csv: class n77 is not in",
        ),
        ("ILSVRC/Data/CLS-LOC/train/n02/n02_7.JPEG", None, "train/n02: holds no images"),
        ("ILSVRC/Data/CLS-LOC/val/v_9.JPEG", "more", "v_9 is only here"),
        ("ILSVRC/Data/CLS-LOC/val/v_1.JPEG", None, "v_1 is only here or only in"),
    ],
)
def test_a_kaggle_source_that_does_not_fit_is_refused(
    tmp_path: Path, path: str, content: str | None, complaint: str
) -> None:
    write_kaggle(tmp_path)
    if content is None:
        (tmp_path / path).unlink()
    else:
        write(tmp_path / path, content)
    assert complaint in refusal(tmp_path)


@pytest.mark.parametrize("form", ["archives", "folders"])
def test_a_source_that_may_not_be_read_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    WRITERS[form](tmp_path)

    def forbidden(*arguments: object, **options: object) -> None:
        raise PermissionError(13, "Permission denied")

    # Root may read everything, so the file mode alone would prove nothing.
    monkeypatch.setattr(storage, "open_input" if form == "archives" else "list_files", forbidden)
    assert "Permission denied" in refusal(tmp_path)


@pytest.mark.skipif(not REAL_DATA, reason="ALEXNET_REAL_DATA names no folder")
def test_real_archives_hold_what_tarfile_finds() -> None:
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
