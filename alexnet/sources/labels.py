"""Class labels: a WordNet ID and a name.

The index of a class is its position in a tuple of labels sorted by WordNet ID, in every layout of
a source. Two classes can have the same name (``crane``, ``maillot``), so names are never used as
keys.

Labels come from the development kit of the official archives, the text files of the Kaggle layout
and of Tiny-ImageNet, or the names of folders. The files are read in memory; nothing is unpacked to
disk and no pickle is loaded.
"""

import codecs
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
from alexnet.sources.content import HEAD_BYTES, explain_content, explain_file

MAX_DEVKIT_BYTES = 256 * 2**20
"""The most that a development kit may contain when it is decompressed; the real one has 2.5 MB."""

_META = "meta.mat"
_GROUND_TRUTH = "ILSVRC2012_validation_ground_truth.txt"

# Imagenette has folder names only; these are the names of its ten classes in ILSVRC2012.
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
    """One class: its WordNet ID (or folder name) and its name, with synonyms."""

    wnid: str
    name: str


@dataclass(frozen=True, slots=True)
class Devkit:
    """Content of ``ILSVRC2012_devkit_t12.tar.gz``.

    Attributes:
        labels: the classes, sorted by WordNet ID.
        validation: the class index of each validation image, in the order of file names.
        ids: the ``ILSVRC2012_ID`` of each class, by class index.
    """

    labels: tuple[Label, ...]
    validation: tuple[int, ...]
    ids: tuple[int, ...]


def name_of_wnid(wnid: str) -> str:
    """The name of an Imagenette class; for any other WordNet ID or folder name, that itself."""
    return _IMAGENETTE.get(wnid, wnid)


def index_of_wnid(labels: Sequence[Label]) -> dict[str, int]:
    """Class index of each WordNet ID."""
    return {label.wnid: index for index, label in enumerate(labels)}


def read_devkit(path: str) -> Devkit:
    """Labels and validation ground truth of the official development kit.

    Args:
        path: a tar.gz, the same without compression, whatever its name, or the unpacked folder.

    Raises:
        UserError: it is neither, lacks a member, or its members contradict each other.
    """
    read = _read_files if storage.is_folder(path) else _read_members
    meta, ground_truth = read(path, (_META, _GROUND_TRUTH))
    label_by_id = _parse_meta(path, meta)
    ids = tuple(sorted(label_by_id, key=lambda key: label_by_id[key]))
    labels = tuple(label_by_id[key] for key in ids)
    index_by_wnid = index_of_wnid(labels)
    if len(index_by_wnid) < len(labels):
        raise _damaged(path, f"{_META} lists a class twice")
    index_by_id = {str(key): index_by_wnid[label.wnid] for key, label in label_by_id.items()}
    try:
        validation = tuple(index_by_id[key] for key in ground_truth.decode("latin-1").split())
    except KeyError as error:
        raise _damaged(
            path, f"{_GROUND_TRUTH} contains {error}, which is not the ILSVRC2012_ID of a class"
        ) from error
    return Devkit(labels, validation, ids)


def read_synset_mapping(path: str) -> tuple[Label, ...]:
    """Labels of Kaggle's ``LOC_synset_mapping.txt``, whose lines are ``wnid name``.

    Raises:
        UserError: the file can't be read, a line has another format, or a class is repeated.
    """
    labels = []
    for number, line in enumerate(_read_text(path).splitlines(), start=1):
        wnid, _, name = line.strip().partition(" ")
        if not name:
            raise UserError(
                f"{path}: line {number} is not 'wnid name'; download the file from Kaggle again"
            )
        labels.append(Label(wnid, name.strip()))
    if not labels or len(index_of_wnid(labels)) < len(labels):
        fault = "lists a class twice" if labels else "lists no class"
        raise UserError(f"{path}: {fault}; download the file from Kaggle again")
    return tuple(sorted(labels))


def read_validation_solution(path: str) -> dict[str, str]:
    """WordNet ID by image ID from Kaggle's ``LOC_val_solution.csv``.

    A prediction string contains one ``wnid x0 y0 x1 y1`` per box. All boxes of an image have the
    same class, so the first WordNet ID is the image's.

    Raises:
        UserError: the file can't be read or lacks a column or a value.
    """
    text = _read_text(path)
    first_line = text.partition("\n")[0]
    # Spreadsheets write semicolons where the decimal sign is a comma.
    delimiter = ";" if ";" in first_line and "," not in first_line else ","
    rows = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter)
    try:
        return {row["ImageId"]: row["PredictionString"].split()[0] for row in rows}
    except (KeyError, IndexError, AttributeError, csv.Error) as error:
        raise UserError(
            f"{path}: line {rows.line_num} has no ImageId or PredictionString; download the "
            "file from Kaggle again"
        ) from error


def read_tiny_annotations(path: str) -> dict[str, str]:
    """WordNet ID by file name from Tiny-ImageNet's ``val_annotations.txt``.

    Raises:
        UserError: the file can't be read, or a line has no WordNet ID.
    """
    wnid_by_image = {}
    for number, line in enumerate(_read_text(path).splitlines(), start=1):
        if fields := line.split():
            if len(fields) < 2:
                raise UserError(f"{path}: line {number} is not 'file wnid x0 y0 x1 y1'; correct it")
            wnid_by_image[fields[0]] = fields[1]
    return wnid_by_image


def read_tiny_labels(classes: str, names: str, folders: Sequence[str]) -> tuple[Label, ...]:
    """Labels of Tiny-ImageNet.

    Args:
        classes: path of ``wnids.txt``, a WordNet ID in each line; it need not exist.
        names: path of ``words.txt``, whose lines are ``wnid<tab>name``; it need not exist.
        folders: the classes if there is no ``wnids.txt``.

    Raises:
        UserError: a file can't be read.
    """
    wnids = _read_text(classes).split() if storage.is_file(classes) else folders
    lines = _read_text(names).splitlines() if storage.is_file(names) else []
    name_by_wnid = {
        wnid: name.strip() for wnid, _, name in (line.partition("\t") for line in lines)
    }
    return tuple(Label(wnid, name_by_wnid.get(wnid, wnid)) for wnid in sorted(set(wnids)))


def _read_files(folder: str, names: tuple[str, ...]) -> list[bytes]:
    """Contents of files at any depth in a folder, by the last parts of their paths."""
    paths = {file.path.rpartition("/")[2]: file.path for file in storage.list_files(folder)}
    for name in names:
        if name not in paths:
            raise _damaged(folder, f"contains no {name}")
    return [storage.read_bytes(paths[name]) for name in names]


def _read_members(path: str, names: tuple[str, ...]) -> list[bytes]:
    """Contents of a tar's or tar.gz's members; ``names`` are the last parts of their paths."""
    contents = {}
    try:
        with storage.open_input(path) as file:
            is_compressed = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            unpacked = gzip.GzipFile(fileobj=file) if is_compressed else file
            content = unpacked.read(MAX_DEVKIT_BYTES + 1)
        if len(content) > MAX_DEVKIT_BYTES:
            raise tarfile.ReadError(f"it contains more than {MAX_DEVKIT_BYTES:,} bytes")
        with tarfile.open(fileobj=io.BytesIO(content), mode="r:") as archive:
            for member in archive:
                name = member.name.rpartition("/")[2]
                if name in names and (opened := archive.extractfile(member)):
                    contents[name] = opened.read()
    except Exception as error:  # tarfile raises many types of errors on damaged data.
        if (what := explain_file(path)) and not what.startswith("compressed"):
            raise UserError(f"{path}: is {what}") from error
        raise _damaged(path, f"not a readable tar.gz ({one_line(error)})") from error
    for name in names:
        if name not in contents:
            raise _damaged(path, f"contains no {name}")
    return [contents[name] for name in names]


def _parse_meta(path: str, content: bytes) -> dict[int, Label]:
    """Label by ILSVRC2012_ID; a row with children is an inner node of WordNet and not a class."""
    try:
        rows = np.atleast_1d(loadmat(io.BytesIO(content), squeeze_me=True)["synsets"])
        labels = {
            int(row["ILSVRC2012_ID"]): Label(str(row["WNID"]), str(row["words"]))
            for row in rows
            if row["num_children"] == 0
        }
    except Exception as error:  # SciPy raises many types of errors on a damaged file.
        raise _damaged(path, f"{_META} can't be read ({one_line(error)})") from error
    if not labels:
        raise _damaged(path, f"{_META} lists no class")
    return labels


def _read_text(path: str) -> str:
    """A text in UTF-8, or in UTF-16 with a byte order mark, as spreadsheets and shells write."""
    try:
        data = storage.read_bytes(path)
        if data and (what := explain_content(data[:HEAD_BYTES])):
            raise UserError(f"{path}: is {what}")
        is_utf16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        return data.decode("utf-16" if is_utf16 else "utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path}: can't be read ({one_line(error)}); download the file again"
        ) from error


def _damaged(path: str, reason: str) -> UserError:
    return UserError(f"{path}: {reason}; download ILSVRC2012_devkit_t12.tar.gz again")
