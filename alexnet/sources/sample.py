"""The sample: handwritten digits in the archives of ILSVRC2012, generated without a download.

The 1,797 digits of scikit-learn become synthetic colour photographs of ink on paper in the three
official archives. So the whole workflow runs offline and executes the same code as for ILSVRC2012.

- Ten classes, ``n00000000`` (zero) to ``n00000009`` (nine). Every fifth digit of a class is for
  validation: 1,437 images for training, 360 for validation.
- JPEGs of quality 90. The shorter side has 160 to 360 pixels, the longer side at most 1.5 times as
  many. They have about 6 kB each, 12 MB in total, and are written in some 3 seconds on one core.
- The unusual files of ILSVRC2012, all in the training archive: a CMYK JPEG, a greyscale JPEG and a
  PNG named ``.JPEG``. One more file, ``n00000009_truncated.JPEG``, is cut in half and can't be
  decoded.
- IDs in the development kit are not in the order of WordNet IDs, and one of its rows is an inner
  node of WordNet, not a class.

The bytes of the three files depend only on this module and the versions of its libraries.
"""

import contextlib
import gzip
import io
import os
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from typing import IO, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.io import savemat

from alexnet import storage
from alexnet.sources.archives import DEVKIT, TRAIN_ARCHIVE, VAL_ARCHIVE
from alexnet.sources.labels import Label

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
"""Names of the classes, in the order of their indices."""

_WNIDS = tuple(f"n{digit:08d}" for digit in range(10))
LABELS = tuple(map(Label, _WNIDS, WORDS))
"""The classes, by label."""

_IDS = tuple(7 * digit % 10 + 1 for digit in range(10))
_META_FIELDS = (
    "ILSVRC2012_ID",
    "WNID",
    "words",
    "gloss",
    "num_children",
    "children",
    "wordnet_height",
    "num_train_images",
)
_TRUNCATED = "n00000009_truncated.JPEG"

_SEED = 2012
# Time of modification of every archive and its members, a day in June 2012: a constant, so that
# the bytes of the archives are always the same.
_TIME = 1_340_000_000


class _File(NamedTuple):
    name: str
    content: bytes


def write_sample(folder: str) -> None:
    """Write the sample's archives into a folder, unless all three exist.

    Raises:
        UnwritableFolderError: the folder can't be written.
    """
    train, val, devkit = (
        storage.join(folder, name) for name in (TRAIN_ARCHIVE, VAL_ARCHIVE, DEVKIT)
    )
    if all(storage.is_file(path) for path in (train, val, devkit)):
        _set_times(train, val, devkit)
        return
    storage.make_folder(folder)
    # The import takes a second, so it is done only here.
    from sklearn.datasets import load_digits

    images, targets = load_digits(return_X_y=True)
    by_class = np.argsort(targets, kind="stable")
    in_val = np.random.default_rng(_SEED).permutation(by_class[::5])
    in_train = np.delete(by_class, np.s_[::5])

    with storage.atomic_output(train) as file:
        _write_tar(file, _class_archives(images, targets, in_train))
    with storage.atomic_output(val) as file:
        _write_tar(file, _validation_images(images, in_val))
    with (
        storage.atomic_output(devkit) as file,
        gzip.GzipFile(filename="", mode="wb", fileobj=file, mtime=0) as compressed,
    ):
        train_counts = np.bincount(targets[in_train])
        _write_tar(compressed, _devkit_files(train_counts.tolist(), targets[in_val].tolist()))
    _set_times(train, val, devkit)


def _set_times(*paths: str) -> None:
    """Set the files' times of modification to a constant, where they are local files.

    The source's fingerprint depends on these times, and a copy of the sample is the same source.
    """
    for path in paths:
        if not storage.is_remote(path) and storage.stat(path).modified_ns != _TIME * 10**9:
            with contextlib.suppress(PermissionError):
                os.utime(path, (_TIME, _TIME))


def _class_archives(
    images: NDArray[np.float64], targets: NDArray[np.int64], rows: NDArray[np.int64]
) -> Iterator[_File]:
    for digit, wnid in enumerate(_WNIDS):
        photographs = [_photograph(images[row], row) for row in rows[targets[rows] == digit]]
        files = [
            _File(f"{wnid}_{number}.JPEG", _encoded(photograph))
            for number, photograph in enumerate(photographs, start=1)
        ]
        first = photographs[0]
        match digit:
            case 0:
                files[0] = files[0]._replace(content=_encoded(first.convert("CMYK")))
            case 1:
                files[0] = files[0]._replace(content=_encoded(first.convert("L")))
            case 2:
                files[0] = files[0]._replace(content=_encoded(first, "PNG"))
            case 9:
                whole = files[0].content
                files.append(_File(_TRUNCATED, whole[: len(whole) // 2]))
        archive = io.BytesIO()
        _write_tar(archive, files)
        yield _File(f"{wnid}.tar", archive.getvalue())


def _validation_images(images: NDArray[np.float64], rows: NDArray[np.int64]) -> Iterator[_File]:
    for number, row in enumerate(rows, start=1):
        photograph = _photograph(images[row], row)
        yield _File(f"ILSVRC2012_val_{number:08d}.JPEG", _encoded(photograph))


def _photograph(digit: NDArray[np.float64], row: int) -> Image.Image:
    """A digit in tinted ink on unevenly lit, tinted paper; the digit is inside the central square.

    Args:
        digit: (64,) from 0 (paper) to 16 (ink).
        row: the digit's number in scikit-learn's data set, the seed of all random choices.
    """
    rng = np.random.default_rng([_SEED, row])
    short = int(rng.integers(160, 361))
    long = int(short * rng.uniform(1, 1.5))
    width, height = (long, short) if rng.random() < 0.6 else (short, long)

    paper_tint = rng.uniform(232, 244) + rng.uniform(-8, 8, size=3)
    light = rng.uniform(-8, 0, size=(3, 3, 1))
    paper = Image.fromarray((paper_tint + light).astype(np.uint8))
    paper = paper.resize((width, height), Image.Resampling.BICUBIC)
    ink = Image.new("RGB", (width, height), tuple(rng.integers(0, 64, size=3).tolist()))

    # Some digits touch the border; a margin of paper avoids a straight edge there.
    strokes = Image.fromarray((np.pad(digit.reshape(8, 8), 1) * 255 / 16).astype(np.uint8))
    side = int(short * rng.uniform(0.95, 1))
    left, top = rng.integers(0, short - side + 1, size=2).tolist()
    mask = Image.new("L", (width, height))
    mask.paste(
        strokes.resize((side, side), Image.Resampling.BICUBIC),
        (left + (width - short) // 2, top + (height - short) // 2),
    )
    return Image.composite(ink, paper, mask)


def _devkit_files(train_counts: Sequence[int], val_classes: Sequence[int]) -> Iterator[_File]:
    classes: list[tuple[object, ...]] = [
        (_IDS[digit], _WNIDS[digit], word, f"the digit {digit}", 0, [], 0, train_counts[digit])
        for digit, word in enumerate(WORDS)
    ]
    inner_node = (11, "n00000010", "digit, figure", "a numeral", 10, sorted(_IDS), 1, 0)
    synsets = np.array([*sorted(classes), inner_node], [(field, object) for field in _META_FIELDS])
    meta = io.BytesIO()
    savemat(meta, {"synsets": synsets.reshape(-1, 1)})
    # The first 116 bytes are a comment, into which SciPy writes the time.
    header = b"MATLAB 5.0 MAT-file".ljust(116)
    ground_truth = "".join(f"{_IDS[digit]}\n" for digit in val_classes)
    readme = "Ten classes of handwritten digits, in the form of the ILSVRC2012 development kit.\n"
    root = DEVKIT.removesuffix(".tar.gz")
    yield _File(f"{root}/readme.txt", readme.encode())
    yield _File(f"{root}/data/meta.mat", header + meta.getvalue()[len(header) :])
    yield _File(f"{root}/data/ILSVRC2012_validation_ground_truth.txt", ground_truth.encode())


def _encoded(image: Image.Image, file_format: str = "JPEG") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, quality=90)
    return buffer.getvalue()


def _write_tar(file: IO[bytes] | gzip.GzipFile, members: Iterable[_File]) -> None:
    with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, content in members:
            header = tarfile.TarInfo(name)
            header.size, header.mtime = len(content), _TIME
            archive.addfile(header, io.BytesIO(content))
