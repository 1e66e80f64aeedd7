"""Which Parquet files a data set of the Hugging Face Hub consists of, and which are missing.

A training file is named ``train-*.parquet`` or is in a folder ``train/``; for validation the word
is ``validation``, ``valid`` or ``val``. A name that ends in ``-00000-of-00003`` is one of three.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from alexnet import storage
from alexnet.errors import UserError
from alexnet.sources.account import is_document
from alexnet.sources.visible import list_folder
from alexnet.storage import File

SPLIT_NAMES = {"train": ("train",), "val": ("validation", "valid", "val")}
"""Names of each split in data sets of the Hub."""

_PART = re.compile(r"(?P<start>.*)-(?P<number>\d+)-of-(?P<count>\d+)(-[0-9a-f]+)?\.parquet")


def find(root: str) -> dict[str, list[File]] | None:
    """The Parquet files of each split in a folder or its ``data/``; None without training files."""
    for folder in (root, storage.join(root, "data")):
        listing = list_folder(folder, recursive=False)
        files = [entry.file for entry in listing.entries]
        files_by_split = {
            split: _with_name(files, folder, names)
            or [
                file
                for name in names
                if name in listing.folders
                for file in _parquet_files(storage.join(folder, name))
            ]
            for split, names in SPLIT_NAMES.items()
        }
        if files_by_split["train"]:
            return files_by_split
    return None


def _with_name(files: Sequence[File], folder: str, names: Iterable[str]) -> list[File]:
    pattern = re.compile(rf"({'|'.join(names)})(-.*)?\.parquet")
    return [file for file in files if pattern.fullmatch(file.path[len(folder) + 1 :])]


def _parquet_files(folder: str) -> list[File]:
    """Parquet files of images: a split with folders has its images in these."""
    listing = list_folder(folder, recursive=False)
    names = [(entry.file, entry.file.path.rpartition("/")[2]) for entry in listing.entries]
    if listing.folders:
        return []
    return [file for file, name in names if name.endswith(".parquet") and not is_document(name)]


def is_test_file(path: str) -> bool:
    """Whether a path below the source is a Parquet file of the split ``test``."""
    return bool(re.fullmatch(r"(data/)?test([-/].*)?(\.parquet)?", path))


def missing_parts(files: Mapping[str, Sequence[File]]) -> list[str]:
    """Names of the parts that the names of the others promise.

    Args:
        files: Parquet files by split.

    Raises:
        UserError: parts of two versions of one split are in the same folder.
    """
    missing = []
    for split_files in files.values():
        numbers: dict[tuple[str, int], set[int]] = defaultdict(set)
        for file in split_files:
            if match := _PART.fullmatch(file.path):
                numbers[match["start"], int(match["count"])].add(int(match["number"]))
        counts_of: dict[str, list[int]] = defaultdict(list)
        for start, count in sorted(numbers):
            counts_of[start].append(count)
        for start, counts in counts_of.items():
            if len(counts) > 1:
                raise UserError(
                    f"{start}-*.parquet: parts -of-{counts[0]:05d} and -of-{counts[1]:05d} are in "
                    "one folder; keep one of the two versions"
                )
            name = start.rpartition("/")[2]
            absent = sorted(set(range(counts[0])) - numbers[start, counts[0]])
            missing += [f"{name}-{number:05d}-of-{counts[0]:05d}.parquet" for number in absent]
    return missing
