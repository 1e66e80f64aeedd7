"""Data sets in the layout of the Hugging Face Hub: Parquet files that contain the images.

A training file is named ``train-*.parquet`` or is in a folder ``train/``; for validation the word
is ``validation``, ``valid`` or ``val``. Files of any other split (``test``, whose labels are all
-1) are ignored. The column ``image`` is a struct with ``bytes`` and optionally ``path``, or it is
the bytes; the column ``label`` contains integers or strings. Only ``label`` and ``path`` are read
here.

The index of a class is its number in the column, if the files' metadata names the classes
(``ClassLabel``); otherwise its position in the sorted list of all values. Its WordNet ID is

1. its name, if all names can be names of folders and are in ascending order, as in the folders
   layout;
2. else the WordNet ID in the training images' names (``n01440764_10026_n01440764.JPEG``), if every
   name has one, each class has exactly one, and they are in ascending order. This is so in
   ``imagenet-1k``, whose class names are words;
3. else its number with leading zeros.
"""

import json
import posixpath
import re
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from alexnet import storage
from alexnet.errors import UserError, one_line
from alexnet.sources.index import Part, part_of_parquet
from alexnet.sources.labels import Label, name_of_wnid
from alexnet.sources.visible import visible_files
from alexnet.storage import File

SPLIT_NAMES = {"train": ("train",), "val": ("validation", "valid", "val")}
"""Names of each split in data sets of the Hub."""

# Files are opened in parallel: on a network drive or in an object store each one takes time.
_THREADS = 16

_FOLDER_NAME = re.compile(r"\w[\w.-]*")
_WNID = r"(?:^|_)(?P<wnid>n\d{8})(?:_|\.|$)"


class _FileLabels(NamedTuple):
    """The columns of one Parquet file, without the images."""

    file: File
    labels: pa.Array
    """int64 or string, one per row; without nulls and negative numbers."""
    paths: pa.Array
    """string, one per row: the image's name; null where the file has none."""
    names: tuple[str, ...] | None
    """Names of the classes by number; None if the metadata has none."""


def find(root: str) -> dict[str, list[File]] | None:
    """The Parquet files of each split in a folder or its ``data/``; None without training files."""
    for folder in (root, storage.join(root, "data")):
        files = storage.list_files(folder, recursive=False)
        files_by_split = {
            split: _with_name(files, folder, names)
            or [file for name in names for file in _parquet_files(storage.join(folder, name))]
            for split, names in SPLIT_NAMES.items()
        }
        if files_by_split["train"]:
            return files_by_split
    return None


def _with_name(files: Sequence[File], folder: str, names: Iterable[str]) -> list[File]:
    pattern = re.compile(rf"({'|'.join(names)})(-.*)?\.parquet")
    return [file for file in files if pattern.fullmatch(file.path[len(folder) + 1 :])]


def _parquet_files(folder: str) -> list[File]:
    files = visible_files(folder, recursive=False)
    return [file for file in files if file.path.endswith(".parquet")]


def read(files: Mapping[str, Sequence[File]]) -> tuple[tuple[Label, ...], list[Part]]:
    """Labels and index of some files; the index names a file and a row for each image.

    Args:
        files: Parquet files by split.

    Raises:
        UserError: a file can't be read, lacks a column or has a label without a class, or files
            contradict each other.
    """
    with ThreadPoolExecutor(_THREADS) as threads:
        read_files = {split: list(threads.map(_read_labels, files[split])) for split in SPLIT_NAMES}
    values, names = _classes([*read_files["train"], *read_files["val"]])
    wnids = _wnids(names, values, read_files["train"])
    labels = tuple(Label(wnid, name_of_wnid(name)) for wnid, name in zip(wnids, names, strict=True))
    return labels, [_part(split, read_files[split], values, wnids) for split in SPLIT_NAMES]


def _read_labels(file: File) -> _FileLabels:
    try:
        with storage.open_input(file.path) as opened:
            parquet = pq.ParquetFile(opened)
            schema = parquet.schema_arrow
            has_path = _check_columns(file, schema)
            columns = ["label", "image.path"] if has_path else ["label"]
            table = parquet.read(columns, use_threads=False)
        table.validate(full=True)
    except (OSError, pa.ArrowException) as error:
        raise UserError(
            f"{file.path}: not a readable Parquet file ({one_line(error)}); download it again"
        ) from error
    labels = table["label"].combine_chunks()
    is_number = pa.types.is_integer(labels.type)
    labels = labels.cast(pa.int64() if is_number else pa.string())
    invalid = pc.fill_null(pc.less(labels, 0), True) if is_number else labels.is_null()
    if pc.any(invalid).as_py():
        row = pc.index(invalid, True).as_py()
        raise _label_error(file, row, labels[row])
    if has_path:
        paths = pc.struct_field(table["image"].combine_chunks(), "path").cast(pa.string())
    else:
        paths = pa.nulls(len(table), pa.string())
    return _FileLabels(file, labels, paths, _names_in_metadata(file, schema))


def _check_columns(file: File, schema: pa.Schema) -> bool:
    """Whether the file has the images' names.

    Raises:
        UserError: a column is missing or has the wrong type.
    """
    for name in ("image", "label"):
        if name not in schema.names:
            raise UserError(
                f"{file.path}: has no column {name} (but {', '.join(schema.names)}); rename the "
                "one that contains it"
            )
    image, label = schema.field("image").type, schema.field("label").type
    if pa.types.is_dictionary(label):
        label = label.value_type
    if not (pa.types.is_integer(label) or label in (pa.string(), pa.large_string())):
        raise UserError(f"{file.path}: column label is {label}; it must be integers or strings")
    fields = {f.name: f.type for f in image} if pa.types.is_struct(image) else {"bytes": image}
    if fields.get("bytes") not in (pa.binary(), pa.large_binary()):
        raise UserError(
            f"{file.path}: column image is {image}; it must be the images' bytes, or a struct of "
            "bytes and path"
        )
    return "path" in fields


def _names_in_metadata(file: File, schema: pa.Schema) -> tuple[str, ...] | None:
    text = (schema.metadata or {}).get(b"huggingface")
    if text is None:
        return None
    try:
        names = json.loads(text)["info"]["features"]["label"].get("names")
        return None if names is None else tuple(map(str, names))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{file.path}: its metadata can't be read ({one_line(error)}); download it again"
        ) from error


def _classes(files: Sequence[_FileLabels]) -> tuple[pa.Array, tuple[str, ...]]:
    """Label value and name of each class, by class index."""
    first = files[0]
    for file in files:
        if (file.labels.type, file.names) != (first.labels.type, first.names):
            raise UserError(
                f"{file.file.path}: the type of its labels or its class names differ from those of "
                f"{first.file.path}; use files of one data set"
            )
    if first.names is not None and first.labels.type == pa.int64():
        return pa.array(range(len(first.names)), pa.int64()), first.names
    values = pc.unique(pa.chunked_array([file.labels for file in files])).sort()
    return values, tuple(map(str, values.to_pylist()))


def _wnids(
    names: Sequence[str], values: pa.Array, train_files: Sequence[_FileLabels]
) -> tuple[str, ...]:
    """A WordNet ID for each class, or its name or number instead; in ascending order."""
    if all(map(_FOLDER_NAME.fullmatch, names)) and _ascending(names):
        return tuple(names)
    in_names = [
        pc.struct_field(pc.extract_regex(file.paths, _WNID), "wnid") for file in train_files
    ]
    pairs = pa.table(
        {
            "class": pa.chunked_array([pc.index_in(file.labels, values) for file in train_files]),
            "wnid": pa.chunked_array(in_names),
        }
    )
    pairs = pairs.group_by(["class", "wnid"]).aggregate([]).sort_by("class")
    wnids = pairs["wnid"].to_pylist()
    one_per_class = pairs["class"].to_pylist() == list(range(len(names)))
    if one_per_class and None not in wnids and _ascending(wnids):
        return tuple(wnids)
    width = len(str(len(names) - 1))
    return tuple(f"{number:0{width}d}" for number in range(len(names)))


def _ascending(words: Sequence[str]) -> bool:
    return all(first < second for first, second in pairwise(words))


def _part(split: str, files: Sequence[_FileLabels], values: pa.Array, wnids: Sequence[str]) -> Part:
    """The index of one split.

    A key is ``<split>/<WordNet ID>/<image's name>``; an image without a name, or with a name that
    is repeated in its class, has ``<Parquet file's name>-<row>`` instead.
    """
    classes, folders, names, numbered = [], [], [], []
    for file in files:
        indices = pc.index_in(file.labels, values)
        if indices.null_count:
            row = pc.index(indices.is_null(), True).as_py()
            raise _label_error(file.file, row, file.labels[row])
        classes.append(indices)
        folders.append(pa.array(wnids, pa.string()).take(indices))
        stem = posixpath.basename(file.file.path).removesuffix(".parquet")
        row_numbers = pa.array(np.arange(len(indices))).cast(pa.string())
        numbered.append(pc.binary_join_element_wise(stem, pc.utf8_lpad(row_numbers, 8, "0"), "-"))
        last = pc.replace_substring_regex(file.paths, "(?s)^.*/", "")
        named = pc.fill_null(pc.not_equal(last, ""), False)
        names.append(pc.if_else(named, last, numbered[-1]))
    folder, name, number = (
        pa.chunked_array(column, pa.string()).combine_chunks()
        for column in (folders, names, numbered)
    )
    keys = pc.binary_join_element_wise(split, folder, name, "/")
    codes = keys.dictionary_encode().indices.to_numpy()
    repeated = pa.array(np.bincount(codes)[codes] > 1)
    keys = pc.if_else(repeated, pc.binary_join_element_wise(split, folder, number, "/"), keys)
    return part_of_parquet(
        keys,
        pa.chunked_array(classes, pa.int32()).combine_chunks(),
        [file.file for file in files],
        [len(file.labels) for file in files],
    )


def _label_error(file: File, row: int, label: pa.Scalar) -> UserError:
    return UserError(
        f"{file.path}: row {row} has label {label}, which is not a class; correct or remove it"
    )
