"""The sample: official archives that torchvision can read, with classes that can be learned."""

import hashlib
import io
import shutil
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import loadmat
from torchvision.datasets import imagenet

from alexnet import storage
from alexnet.shards.decode import Decoded, decode
from alexnet.sources.archives import DEVKIT, TRAIN_ARCHIVE, VAL_ARCHIVE
from alexnet.sources.read import Source, read_source
from alexnet.sources.sample import WORDS, write_sample

pytestmark = pytest.mark.slow

ARCHIVES = (TRAIN_ARCHIVE, VAL_ARCHIVE, DEVKIT)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sample")
    write_sample(str(folder))
    return folder


@pytest.fixture(scope="module")
def source(folder: Path) -> Source:
    return read_source(str(folder))


@pytest.fixture(scope="module")
def files(source: Source) -> dict[str, bytes]:
    return {
        row["key"]: storage.read_range(row["path"], row["offset"], row["size"])
        for row in source.index.to_pylist()
    }


def test_sample_has_ten_named_classes_and_the_documented_counts(source: Source) -> None:
    assert tuple(label.name for label in source.labels) == WORDS
    counts = Counter((row["split"], row["label"]) for row in source.index.to_pylist())
    train = [counts["train", digit] for digit in range(10)]
    val = [counts["val", digit] for digit in range(10)]
    assert (sum(train), sum(val)) == (1437 + 1, 360)
    assert all(abs(4 * v - t) <= 4 for t, v in zip(train, val, strict=True))


def test_torchvision_reads_the_same_labels(
    folder: Path, source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(folder / DEVKIT, tmp_path)
    md5 = hashlib.md5((folder / DEVKIT).read_bytes()).hexdigest()
    monkeypatch.setitem(imagenet.ARCHIVE_META, "devkit", (DEVKIT, md5))
    imagenet.parse_devkit_archive(str(tmp_path))
    words, val_wnids = torch.load(tmp_path / imagenet.META_FILE, weights_only=True)
    assert words == {label.wnid: (label.name,) for label in source.labels}
    in_val = source.index.filter(source.index["split"].to_numpy(zero_copy_only=False) == "val")
    assert in_val["wnid"].to_pylist() == val_wnids


def test_ids_are_not_in_wnid_order_and_one_is_an_inner_node(folder: Path) -> None:
    with tarfile.open(folder / DEVKIT) as archive:
        meta = archive.extractfile("ILSVRC2012_devkit_t12/data/meta.mat")
        synsets = loadmat(meta, squeeze_me=True)["synsets"]
    assert synsets["ILSVRC2012_ID"].tolist() == list(range(1, 12))
    assert synsets["num_children"].tolist() == [0] * 10 + [10]
    wnids = synsets["WNID"].tolist()
    assert wnids != sorted(wnids)


def test_sample_has_the_unusual_files_of_the_real_data(files: dict[str, bytes]) -> None:
    opened = {key: Image.open(io.BytesIO(content)) for key, content in files.items()}
    formats = Counter((image.format, image.mode) for image in opened.values())
    assert formats == {
        ("JPEG", "RGB"): 1437 + 1 + 360 - 3,
        ("JPEG", "CMYK"): 1,
        ("JPEG", "L"): 1,
        ("PNG", "RGB"): 1,
    }
    sizes = [image.size for image in opened.values()]
    assert {min(size) for size in sizes} <= set(range(160, 361))
    assert max(max(size) / min(size) for size in sizes) <= 1.5
    assert any(width > height for width, height in sizes)
    assert any(width < height for width, height in sizes)


def test_all_but_the_truncated_file_are_decoded_and_similar_within_a_class(
    source: Source, files: dict[str, bytes]
) -> None:
    features: dict[str, list[np.ndarray]] = {"train": [], "val": []}
    labels: dict[str, list[int]] = {"train": [], "val": []}
    rejected = {}
    for row in source.index.to_pylist():
        match decode(files[row["key"]]):
            case Decoded(pixels=pixels):
                # 8x8 grey pixels, without the brightness of the paper and the contrast of the ink.
                grey = pixels.reshape(8, 32, 8, 32, 3).mean(axis=(1, 3, 4)).ravel()
                features[row["split"]].append((grey - grey.mean()) / grey.std())
                labels[row["split"]].append(row["label"])
            case rejection:
                rejected[row["key"]] = rejection.reason
    assert rejected == {"train/n00000009/n00000009_truncated.JPEG": "truncated"}
    nearest = (np.stack(features["val"]) @ np.stack(features["train"]).T).argmax(axis=1)
    correct = np.array(labels["train"])[nearest] == np.array(labels["val"])
    assert correct.mean() > 0.9


def test_sample_has_colour(files: dict[str, bytes]) -> None:
    pixels = [decode(content) for content in list(files.values())[:60]]
    values = np.concatenate([image.pixels[::16, ::16].reshape(-1, 3) for image in pixels])  # type: ignore[union-attr]
    assert np.linalg.eigvalsh(np.cov(values.T.astype(float))).min() > 25


def test_writing_again_gives_the_same_bytes_or_does_nothing(folder: Path, tmp_path: Path) -> None:
    times = [(folder / name).stat().st_mtime_ns for name in ARCHIVES]
    write_sample(str(folder))
    assert [(folder / name).stat().st_mtime_ns for name in ARCHIVES] == times
    shutil.copy(folder / TRAIN_ARCHIVE, tmp_path)
    write_sample(str(tmp_path))
    for name in ARCHIVES:
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(ARCHIVES)


def test_a_copy_is_the_same_source(source: Source, folder: Path, tmp_path: Path) -> None:
    for name in ARCHIVES:
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    write_sample(str(tmp_path))
    assert read_source(str(tmp_path)).source_fingerprint == source.source_fingerprint
