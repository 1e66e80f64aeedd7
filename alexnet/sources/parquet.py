"""Data sets in the form of the Hugging Face Hub: Parquet files with the images inside.

A file is named ``train-*.parquet``, or lies in a folder ``train/``; so for ``validation``,
``valid`` or ``val``; files of any other split (``test``, whose labels are all -1) are left alone.
The column ``image`` is a struct with ``bytes`` and perhaps ``path``, or the bytes themselves; the
column ``label`` holds integers or strings. Only ``label`` and ``path`` are read here.

The index of a class is its number in the column, if the files' metadata names the classes
(``ClassLabel``); otherwise its position in the sorted list of all values. Its WordNet ID is

1. its name, if all names can be names of folders and are in order, as in the folders form;
2. else what the training files' names say (``n01440764_10026_n01440764.JPEG``), if every name
   does, each class has one, and they are in order: so in ``imagenet-1k``, whose class names are
   words;
3. else its number, with zeros in front.
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
from alexnet.storage import File

SPLIT_NAMES = {"train": ("train",), "val": ("validation", "valid", "val")}
"""What the Hub's data sets call our splits."""

# Files are opened side by side: on a network drive or in an object store each one waits.
_THREADS = 16

_FOLDER_NAME = re.compile(r"\w[\w.-]*")
_WNID = r"(?:^|_)(?P<wnid>n\d{8})(?:_|\.|$)"


class _Rows(NamedTuple):
    """A Parquet file's columns, without the images."""

    file: File
    labels: pa.Array
    """int64 or string, without nulls and negative numbers."""
    paths: pa.Array
    """string; null where the file says nothing."""
    names: tuple[str, ...] | None
    """Of the classes, by number."""


def find(root: str) -> dict[str, list[File]] | None:
    """The Parquet files of each split in a folder or its ``data/``; None without any of train."""
    for folder in (root, storage.join(root, "data")):
        beside = storage.list_files(folder, recursive=False)
        found = {
            split: _named(beside, folder, names)
            or [file for name in names for file in _inside(storage.join(folder, name))]
            for split, names in SPLIT_NAMES.items()
        }
        if found["train"]:
            return found
    return None


def _named(files: Sequence[File], folder: str, names: Iterable[str]) -> list[File]:
    pattern = re.compile(rf"({'|'.join(names)})(-.*)?\.parquet")
    return [file for file in files if pattern.fullmatch(file.path[len(folder) + 1 :])]


def _inside(folder: str) -> list[File]:
    files = storage.list_files(folder, recursive=False)
    return [file for file in files if re.search(r"/[^./][^/]*\.parquet$", file.path)]


def read(files: Mapping[str, Sequence[File]]) -> tuple[tuple[Label, ...], list[Part]]:
    """Labels, and rows that name a Parquet file and a row in it, of the files of each split.

    Raises:
        UserError: a file can't be read, lacks a column, or has a label that is no class's; or
            files contradict each other.
    """
    with ThreadPoolExecutor(_THREADS) as threads:
        rows = {split: list(threads.map(_read_rows, files[split])) for split in SPLIT_NAMES}
    values, names = _classes([*rows["train"], *rows["val"]])
    wnids = _wnids(names, values, rows["train"])
    labels = tuple(Label(wnid, name_of_wnid(name)) for wnid, name in zip(wnids, names, strict=True))
    return labels, [_part(split, rows[split], values, wnids) for split in SPLIT_NAMES]


def _read_rows(file: File) -> _Rows:
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
            f"{file.path}: not a readable Parquet file ({one_line(error)}); get it again"
        ) from error
    labels = table["label"].combine_chunks()
    is_number = pa.types.is_integer(labels.type)
    labels = labels.cast(pa.int64() if is_number else pa.string())
    wrong = pc.fill_null(pc.less(labels, 0), True) if is_number else labels.is_null()
    if pc.any(wrong).as_py():
        row = pc.index(wrong, True).as_py()
        raise _no_class(file, row, labels[row])
    if has_path:
        paths = pc.struct_field(table["image"].combine_chunks(), "path").cast(pa.string())
    else:
        paths = pa.nulls(len(table), pa.string())
    return _Rows(file, labels, paths, _names_in_metadata(file, schema))


def _check_columns(file: File, schema: pa.Schema) -> bool:
    """Whether the images come with paths.

    Raises:
        UserError: a column is missing or of the wrong kind.
    """
    for name in ("image", "label"):
        if name not in schema.names:
            raise UserError(
                f"{file.path}: has no column {name} (but {', '.join(schema.names)}); rename the "
                "one that holds it"
            )
    image, label = schema.field("image").type, schema.field("label").type
    if pa.types.is_dictionary(label):
        label = label.value_type
    if not (pa.types.is_integer(label) or label in (pa.string(), pa.large_string())):
        raise UserError(f"{file.path}: column label is {label}; make it integers or strings")
    fields = {f.name: f.type for f in image} if pa.types.is_struct(image) else {"bytes": image}
    if fields.get("bytes") not in (pa.binary(), pa.large_binary()):
        raise UserError(
            f"{file.path}: column image is {image}; make it the images' bytes, or a struct of "
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
            f"{file.path}: its metadata can't be read ({one_line(error)}); get it again"
        ) from error


def _classes(rows: Sequence[_Rows]) -> tuple[pa.Array, tuple[str, ...]]:
    """The column's value for each class, and the classes' names."""
    first = rows[0]
    for file in rows:
        if (file.labels.type, file.names) != (first.labels.type, first.names):
            raise UserError(
                f"{file.file.path}: its labels are not of the kind, or its class names not those, "
                f"of {first.file.path}; get all files from the same place"
            )
    if first.names is not None and first.labels.type == pa.int64():
        return pa.array(range(len(first.names)), pa.int64()), first.names
    values = pc.unique(pa.chunked_array([file.labels for file in rows])).sort()
    return values, tuple(map(str, values.to_pylist()))


def _wnids(names: Sequence[str], values: pa.Array, train: Sequence[_Rows]) -> tuple[str, ...]:
    """A WordNet ID or what stands for it, for each class; in order."""
    if all(map(_FOLDER_NAME.fullmatch, names)) and _ascend(names):
        return tuple(names)
    said = [pc.struct_field(pc.extract_regex(file.paths, _WNID), "wnid") for file in train]
    pairs = pa.table(
        {
            "class": pa.chunked_array([pc.index_in(file.labels, values) for file in train]),
            "wnid": pa.chunked_array(said),
        }
    )
    pairs = pairs.group_by(["class", "wnid"]).aggregate([]).sort_by("class")
    found = pairs["wnid"].to_pylist()
    one_each = pairs["class"].to_pylist() == list(range(len(names)))
    if one_each and None not in found and _ascend(found):
        return tuple(found)
    width = len(str(len(names) - 1))
    return tuple(f"{number:0{width}d}" for number in range(len(names)))


def _ascend(words: Sequence[str]) -> bool:
    return all(first < second for first, second in pairwise(words))


def _part(split: str, rows: Sequence[_Rows], values: pa.Array, wnids: Sequence[str]) -> Part:
    classes, folders, names, numbered = [], [], [], []
    for file in rows:
        indices = pc.index_in(file.labels, values)
        if indices.null_count:
            row = pc.index(indices.is_null(), True).as_py()
            raise _no_class(file.file, row, file.labels[row])
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
        [file.file for file in rows],
        [len(file.labels) for file in rows],
    )


def _no_class(file: File, row: int, label: pa.Scalar) -> UserError:
    return UserError(
        f"{file.path}: row {row} has label {label}, which is no class; correct or remove it"
    )
