"""Small data sets, and writers of each layout of a source."""

import io
import json
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

from alexnet.errors import UserError
from alexnet.sources.archives import DEVKIT, TRAIN_ARCHIVE, VAL_ARCHIVE
from alexnet.sources.labels import Label
from alexnet.sources.read import Source, read_image, read_source


class DataSet(NamedTuple):
    """A data set that can be written in every layout."""

    labels: tuple[Label, ...]
    train: Mapping[str, Mapping[str, bytes]]
    """File contents by class and file name."""
    val: Mapping[str, bytes]
    """File contents by image ID, which is the file name without extension."""
    val_wnids: Mapping[str, str]
    """Class by image ID."""
    ids: Mapping[str, int]
    """ILSVRC2012_ID by class."""


LABELS = (Label("n01", "tench, Tinca tinca"), Label("n02", "crane"), Label("n02-b", "crane"))
TEXT_DATA_SET = DataSet(
    labels=LABELS,
    train={
        "n01": {"n01_1.JPEG": b"t one", "n01_2.JPEG": b""},
        "n02": {"n02_7.JPEG": b"t crane"},
        "n02-b": {"n02-b_3.JPEG": b"t other crane"},
    },
    # In the order of names the classes are 1, 0, 2, 0. The archive has another order.
    val={"v_3": b"v c", "v_1": b"v a", "v_4": b"v d", "v_2": b"v b"},
    val_wnids={"v_1": "n02", "v_2": "n01", "v_3": "n02-b", "v_4": "n01"},
    ids={"n01": 3, "n02": 1, "n02-b": 2},
)
"""Its files contain short texts, which is enough to build an index."""


def image_data_set() -> DataSet:
    """Images that can be decoded, except one that is truncated."""
    random = np.random.default_rng(2012)

    def jpeg() -> bytes:
        buffer = io.BytesIO()
        coarse = Image.fromarray(random.integers(0, 256, (5, 6, 3), np.uint8))
        size = tuple(random.integers(200, 340, 2).tolist())
        coarse.resize(size, Image.Resampling.BICUBIC).save(buffer, "JPEG")
        return buffer.getvalue()

    train = {wnid: {f"{wnid}_{n}.JPEG": jpeg() for n in range(4)} for wnid, _ in LABELS}
    train["n02"]["n02_1.JPEG"] = train["n02"]["n02_1.JPEG"][:1000]
    val = {name: jpeg() for name in TEXT_DATA_SET.val}
    return TEXT_DATA_SET._replace(train=train, val=val)


def make_tar(
    contents: Mapping[str, bytes], mode: str = "w", hard_links: Mapping[str, str] | None = None
) -> bytes:
    """A tar archive of contents by file name, and of hard links, by name, to other names."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:  # type: ignore[call-overload]
        for name, content in contents.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        for name, target in (hard_links or {}).items():
            member = tarfile.TarInfo(name)
            member.type, member.linkname = tarfile.LNKTYPE, target
            archive.addfile(member)
    return buffer.getvalue()


def replace_val_images_by_links(root: Path, data: DataSet) -> None:
    """In the archives, ``v_2`` becomes a link to ``v_1`` and ``v_3`` a link to no file."""
    files = {f"{name}.JPEG": data.val[name] for name in ("v_1", "v_4")}
    links = {"v_2.JPEG": "v_1.JPEG", "v_3.JPEG": "missing.JPEG"}
    write_file(root / VAL_ARCHIVE, make_tar(files, hard_links=links))


def write_file(path: Path, content: bytes | str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


def write_archives(root: Path, data: DataSet = TEXT_DATA_SET) -> None:
    write_file(
        root / TRAIN_ARCHIVE,
        make_tar(
            {f"{wnid}.tar": make_tar(data.train[wnid]) for wnid in sorted(data.train, reverse=True)}
        ),
    )
    write_file(
        root / VAL_ARCHIVE,
        make_tar({f"{name}.JPEG": content for name, content in data.val.items()}),
    )
    fields = ("ILSVRC2012_ID", "WNID", "words", "num_children")
    rows = [(data.ids[wnid], wnid, name, 0) for wnid, name in data.labels]
    meta = io.BytesIO()
    synsets = np.array(sorted(rows), dtype=[(field, object) for field in fields])
    savemat(meta, {"synsets": synsets.reshape(-1, 1)})
    truth = "".join(f"{data.ids[data.val_wnids[name]]}\n" for name in sorted(data.val))
    devkit = {
        "d/meta.mat": meta.getvalue(),
        "d/ILSVRC2012_validation_ground_truth.txt": truth.encode(),
    }
    write_file(root / DEVKIT, make_tar(devkit, "w:gz"))


def write_kaggle(root: Path, data: DataSet = TEXT_DATA_SET) -> None:
    images = root / "ILSVRC/Data/CLS-LOC"
    for wnid, contents in data.train.items():
        for name, content in contents.items():
            write_file(images / "train" / wnid / name, content)
    for name, content in data.val.items():
        write_file(images / "val" / f"{name}.JPEG", content)
    write_file(images / "test" / "unlabelled.JPEG", b"not in the index")
    write_file(
        root / "LOC_synset_mapping.txt", "".join(f"{wnid} {name}\n" for wnid, name in data.labels)
    )
    lines = [f"{name},{wnid} 1 2 3 4 \n" for name, wnid in data.val_wnids.items()]
    write_file(root / "LOC_val_solution.csv", "ImageId,PredictionString\n" + "".join(lines))


def write_folders(root: Path, data: DataSet = TEXT_DATA_SET) -> None:
    for wnid, contents in data.train.items():
        for name, content in contents.items():
            write_file(root / "train" / wnid / name, content)
    for name, content in data.val.items():
        write_file(root / "val" / data.val_wnids[name] / f"{name}.JPEG", content)


def write_parquet(root: Path, data: DataSet = TEXT_DATA_SET) -> None:
    """Several files in the format of the Hub's library ``datasets``, with small row groups."""
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
    """One Parquet file with rows of (path, bytes, label) and the classes' names in its metadata."""
    images = [{"bytes": content, "path": name} for name, content, _ in rows]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    labels = pa.array([label for *_, label in rows], None if rows else pa.int64())
    table = pa.table({"image": pa.array(images, kind), "label": labels})
    if names is not None:
        features = {"label": {"names": list(names), "_type": "ClassLabel"}}
        text = json.dumps({"info": {"features": features}})
        table = table.replace_schema_metadata({"huggingface": text})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=2)


def write_tiny_imagenet(root: Path, data: DataSet = TEXT_DATA_SET) -> None:
    """Validation images in one folder, training images in a folder inside each class."""
    for wnid, contents in data.train.items():
        write_file(root / "train" / wnid / f"{wnid}_boxes.txt", "boxes")
        (root / "train" / wnid / "images").mkdir()
        for name, content in contents.items():
            write_file(root / "train" / wnid / "images" / name, content)
    lines = [f"{name}.JPEG\t{wnid}\t0\t1\t2\t3\n" for name, wnid in data.val_wnids.items()]
    write_file(root / "val/val_annotations.txt", "".join(lines))
    (root / "val/images").mkdir()
    for name, content in data.val.items():
        write_file(root / "val/images" / f"{name}.JPEG", content)
    write_file(root / "test/images/test_0.JPEG", b"not in the index")
    write_file(root / "wnids.txt", "".join(f"{wnid}\n" for wnid, _ in reversed(data.labels)))
    words = "".join(f"{wnid}\t{name}\n" for wnid, name in data.labels)
    write_file(root / "words.txt", "n00\tentity\n" + words)


WRITERS: dict[str, Callable[..., None]] = {
    "archives": write_archives,
    "kaggle": write_kaggle,
    "folders": write_folders,
    "parquet": write_parquet,
    "tiny-imagenet": write_tiny_imagenet,
}


def contents_of(source: Source) -> dict[str, tuple[str, str, int, bytes]]:
    """Split, WordNet ID, class index and bytes of each image by key."""
    return {
        row["key"]: (row["split"], row["wnid"], row["label"], read_image(source, row))
        for row in source.index.to_pylist()
    }


def read_error(root: Path) -> str:
    """The message of the error that reading a source raises."""
    with pytest.raises(UserError) as caught:
        read_source(str(root))
    message = str(caught.value)
    assert message.startswith(str(root))
    assert "\n" not in message
    return message
