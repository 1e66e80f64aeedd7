"""The embedded sample: handwritten digits as ILSVRC2012 would have published them.

scikit-learn's 1,797 bundled digits become colour photographs of ink on paper in the three
official archives, so that the whole workflow runs offline, along the same paths as the real data.

- Ten classes, ``n00000000`` (zero) to ``n00000009`` (nine). Every fifth digit of a class is for
  validation: 1,437 images for training, 360 for validation.
- JPEGs of quality 90 whose shorter side is 160 to 360 pixels and whose longer side is up to half
  as long again: about 6 kB each, 12 MB in all, written in some 3 seconds on one core.
- The oddities of the real data, all in the training archive: a CMYK JPEG, a greyscale JPEG and a
  PNG named ``.JPEG``. One file more than the 1,437, ``n00000009_truncated.JPEG``, is cut in half
  and can't be read.
- IDs in the development kit are not in the order of WordNet IDs, and one of its rows is an inner
  node and no class.

The three files' bytes depend on nothing but this module and the versions of its libraries.
"""

import gzip
import io
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from typing import IO, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.io import savemat

from alexnet import storage
from alexnet.sources.read import DEVKIT, TRAIN_ARCHIVE, VAL_ARCHIVE

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
"""Names of the classes, in the order of their indices."""

_WNIDS = tuple(f"n{digit:08d}" for digit in range(10))
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
_TIME = 1_340_000_000  # A day in June 2012, the time of every file: equal content, equal bytes.


class _File(NamedTuple):
    name: str
    content: bytes


def write_sample(folder: str) -> None:
    """Write the sample's archives into a folder, unless all three are there already.

    Raises:
        UserError: the folder can't be written.
    """
    train, val, devkit = (
        storage.join(folder, name) for name in (TRAIN_ARCHIVE, VAL_ARCHIVE, DEVKIT)
    )
    if all(storage.is_file(path) for path in (train, val, devkit)):
        return
    storage.make_folder(folder)
    # A second to import, which only those who want the sample should wait for.
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
        row: the digit's number, which decides everything that is random.
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

    # A margin of paper keeps the strokes that touch the border from ending in a straight edge.
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
    # The first 116 bytes are a text for people, in which SciPy writes the time.
    header = b"MATLAB 5.0 MAT-file".ljust(116)
    ground_truth = "".join(f"{_IDS[digit]}\n" for digit in val_classes)
    readme = "Ten classes of handwritten digits, in the form of the ILSVRC2012 development kit.\n"
    root = DEVKIT.removesuffix(".tar.gz")
    yield _File(f"{root}/readme.txt", readme.encode())
    yield _File(f"{root}/data/meta.mat", header + meta.getvalue()[len(header) :])
    yield _File(f"{root}/data/ILSVRC2012_validation_ground_truth.txt", ground_truth.encode())


def _encoded(image: Image.Image, form: str = "JPEG") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, quality=90)
    return buffer.getvalue()


def _write_tar(file: IO[bytes] | gzip.GzipFile, members: Iterable[_File]) -> None:
    with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, content in members:
            header = tarfile.TarInfo(name)
            header.size, header.mtime = len(content), _TIME
            archive.addfile(header, io.BytesIO(content))
