"""Class labels: a WordNet ID and the words for it.

The index of a class is its position in a tuple of labels sorted by WordNet ID, whatever the
source. Two classes may share their words (``crane``, ``maillot``), so nothing is keyed on names.

Three sources know labels: the development kit that belongs to the official archives, the two
lists of the Kaggle form, and the folder names of the folders form. They are read in memory;
nothing is unpacked to disk and no pickle is opened.
"""

import csv
import gzip
import io
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.io import loadmat

from alexnet import storage
from alexnet.errors import UserError, one_line

# The real one is a file of 2.5 MB; what unpacks to more than this is no devkit.
_LARGEST_CONTENT = 256 * 2**20

_META = "meta.mat"
_GROUND_TRUTH = "ILSVRC2012_validation_ground_truth.txt"

# Imagenette's folders carry no words; these are the ten classes' words in ILSVRC2012.
_IMAGENETTE = {
    "n01440764": "tench, Tinca tinca",
    "n02102040": "English springer, English springer spaniel",
    "n02979186": "cassette player",
    "n03000684": "chain saw, chainsaw",
    "n03028079": "church, church building",
    "n03394916": "French horn, horn",
    "n03417042": "garbage truck, dustcart",
    "n03425413": "gas pump, gasoline pump, petrol pump, island dispenser",
    "n03445777": "golf ball",
    "n03888257": "parachute, chute",
}


class Label(NamedTuple):
    """One class: its WordNet ID (or folder name) and its words, synonyms included."""

    wnid: str
    name: str


@dataclass(frozen=True, slots=True)
class Devkit:
    """What ``ILSVRC2012_devkit_t12.tar.gz`` knows.

    Attributes:
        labels: the classes, sorted by WordNet ID.
        validation: the class index of each validation image, in the order of file names.
    """

    labels: tuple[Label, ...]
    validation: tuple[int, ...]


def name_of_wnid(wnid: str) -> str:
    """The words of an Imagenette class; any other name stands for itself."""
    return _IMAGENETTE.get(wnid, wnid)


def index_of_wnid(labels: Sequence[Label]) -> dict[str, int]:
    """Class index by WordNet ID."""
    return {label.wnid: index for index, label in enumerate(labels)}


def read_devkit(path: str) -> Devkit:
    """Labels and validation ground truth of the official development kit.

    Raises:
        UserError: the file is no tar.gz, lacks a member, or its parts contradict each other.
    """
    meta, ground_truth = _read_members(path, (_META, _GROUND_TRUTH))
    label_by_id = _parse_meta(path, meta)
    labels = tuple(sorted(label_by_id.values()))
    index_by_wnid = index_of_wnid(labels)
    if len(index_by_wnid) < len(labels):
        raise _damaged(path, f"{_META} lists a class twice")
    index_by_id = {str(key): index_by_wnid[label.wnid] for key, label in label_by_id.items()}
    try:
        validation = tuple(index_by_id[key] for key in ground_truth.decode("latin-1").split())
    except KeyError as error:
        raise _damaged(
            path, f"{_GROUND_TRUTH} holds {error}, which is no class's ILSVRC2012_ID"
        ) from error
    return Devkit(labels, validation)


def read_synset_mapping(path: str) -> tuple[Label, ...]:
    """Labels of Kaggle's ``LOC_synset_mapping.txt``, whose lines read ``wnid words``.

    Raises:
        UserError: the file can't be read, or a line is not of that form or comes twice.
    """
    labels = []
    for number, line in enumerate(_read_text(path).splitlines(), start=1):
        wnid, _, name = line.strip().partition(" ")
        if not name:
            raise UserError(
                f"{path}: line {number} is not 'wnid words'; get the file from Kaggle again"
            )
        labels.append(Label(wnid, name.strip()))
    if not labels or len(index_of_wnid(labels)) < len(labels):
        fault = "lists a class twice" if labels else "lists no class"
        raise UserError(f"{path}: {fault}; get the file from Kaggle again")
    return tuple(sorted(labels))


def read_validation_solution(path: str) -> dict[str, str]:
    """WordNet ID by image ID from Kaggle's ``LOC_val_solution.csv``.

    A prediction string holds one ``wnid x0 y0 x1 y1`` per box; all boxes of an image are of one
    class, so the first WordNet ID is the image's.

    Raises:
        UserError: the file can't be read or lacks a column or a value.
    """
    rows = csv.DictReader(io.StringIO(_read_text(path)))
    try:
        return {row["ImageId"]: row["PredictionString"].split()[0] for row in rows}
    except (KeyError, IndexError, AttributeError, csv.Error) as error:
        raise UserError(
            f"{path}: line {rows.line_num} has no ImageId or PredictionString; get the file from "
            "Kaggle again"
        ) from error


def _read_members(path: str, names: tuple[str, ...]) -> list[bytes]:
    """Contents of a tar.gz's members, found by the last part of their names."""
    found = {}
    try:
        with storage.open_input(path) as file, gzip.GzipFile(fileobj=file) as unpacked:
            content = unpacked.read(_LARGEST_CONTENT + 1)
        if len(content) > _LARGEST_CONTENT:
            raise tarfile.ReadError(f"it holds more than {_LARGEST_CONTENT:,} bytes")
        with tarfile.open(fileobj=io.BytesIO(content), mode="r:") as archive:
            for member in archive:
                name = member.name.rpartition("/")[2]
                if name in names and (opened := archive.extractfile(member)):
                    found[name] = opened.read()
    except Exception as error:  # On damaged data tarfile raises almost anything.
        raise _damaged(path, f"not a readable tar.gz ({one_line(error)})") from error
    for name in names:
        if name not in found:
            raise _damaged(path, f"holds no {name}")
    return [found[name] for name in names]


def _parse_meta(path: str, content: bytes) -> dict[int, Label]:
    """Labels by ILSVRC2012_ID; a row with children is an inner node of WordNet, not a class."""
    try:
        rows = np.atleast_1d(loadmat(io.BytesIO(content), squeeze_me=True)["synsets"])
        labels = {
            int(row["ILSVRC2012_ID"]): Label(str(row["WNID"]), str(row["words"]))
            for row in rows
            if row["num_children"] == 0
        }
    except Exception as error:  # SciPy's reader raises almost anything on a damaged file.
        raise _damaged(path, f"{_META} can't be read ({one_line(error)})") from error
    if not labels:
        raise _damaged(path, f"{_META} lists no class")
    return labels


def _read_text(path: str) -> str:
    try:
        return storage.read_bytes(path).decode()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path}: can't be read ({one_line(error)}); get the file from Kaggle again"
        ) from error


def _damaged(path: str, reason: str) -> UserError:
    return UserError(f"{path}: {reason}; download ILSVRC2012_devkit_t12.tar.gz again")
