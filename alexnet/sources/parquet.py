"""Data sets in the layout of the Hugging Face Hub: Parquet files that contain the images.

``parquet_files`` finds the files. The test split, whose labels are all -1, is ignored. The column
``image`` is a struct with ``bytes`` and optionally ``path``, or it is the bytes; where ``bytes`` is
null, ``path`` is a file. The column ``label`` contains integers or strings. Only ``label`` and
``path`` are read here.

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
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from alexnet import storage
from alexnet.errors import UserError, one_line
from alexnet.sources.account import BESIDE, TEST, Account, count_beside, why_unused
from alexnet.sources.content import explain_file
from alexnet.sources.index import Contents, Part, part_of_parquet
from alexnet.sources.labels import Label, name_of_wnid
from alexnet.sources.parquet_extract import find_local
from alexnet.sources.parquet_files import SPLIT_NAMES, is_test_file, missing_parts
from alexnet.storage import File

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
    local: list[str]
    """``path`` of the images whose ``bytes`` are null."""


def read_parquet(
    root: str, files: Mapping[str, Sequence[File]], outside: str | None = None
) -> Contents:
    """Labels and index of some files; the index names a file and a row for each image.

    Args:
        root: the source.
        files: Parquet files by split.
        outside: a folder that is not part of the source, even if it is inside.

    Raises:
        UserError: a file can't be read, lacks a column or has a label without a class, or files
            contradict each other.
    """
    if not files["val"]:
        tests = [f.path for f in storage.list_files(root) if is_test_file(f.path[len(root) + 1 :])]
        advice = "add them"
        if tests:
            advice = f"if the labels in {tests[0]} are known, rename it to validation-*.parquet"
        raise UserError(f"{root}: contains train-*.parquet but no validation-*.parquet; {advice}")
    account = Account()
    account.add_missing("missing Parquet files", missing_parts(files))
    with ThreadPoolExecutor(_THREADS) as threads:
        read_files = {split: list(threads.map(_read_labels, files[split])) for split in SPLIT_NAMES}
        contents = [content for split in SPLIT_NAMES for content in read_files[split]]
        named = [(content.file.path, name) for content in contents for name in content.local]
        local = dict(zip(named, threads.map(lambda names: find_local(*names), named), strict=True))
    values, names = _classes(contents)
    wnids = _wnids(names, values, read_files["train"])
    labels = tuple(Label(wnid, name_of_wnid(name)) for wnid, name in zip(wnids, names, strict=True))
    parts = [_part(split, read_files[split], values, wnids) for split in SPLIT_NAMES]

    absent = [name for (_, name), file in local.items() if file is None]
    account.add_missing("missing files that Parquet files name instead of images", absent)
    local_files = sorted({file for file in local.values() if file})
    paths = {file.path for file in [*local_files, *(content.file for content in contents)]}
    for entry in count_beside(account, root, (), outside=outside):
        if entry.file.path in paths:
            account.others += 1
        elif is_test_file(entry.file.path[len(root) + 1 :]):
            account.ignored[TEST] += 1
        else:
            account.add_unused(why_unused(entry, BESIDE), [entry.file.path])
    return Contents(labels, parts, local_files, account)


def _read_labels(file: File) -> _FileLabels:
    try:
        with storage.open_input(file.path) as opened:
            parquet = pq.ParquetFile(opened)
            schema = parquet.schema_arrow
            has_path = _check_columns(file, schema)
            columns = ["label", "image.path"] if has_path else ["label"]
            table = parquet.read(columns, use_threads=False)
            is_null = _is_null(parquet) if has_path else None
        table.validate(full=True)
    except (OSError, pa.ArrowException) as error:
        if what := explain_file(file.path):
            raise UserError(f"{file.path}: is {what}") from error
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
    local = [] if is_null is None else paths.filter(is_null).drop_null().to_pylist()
    return _FileLabels(file, labels, paths, _names_in_metadata(file, schema), local)


def _is_null(parquet: pq.ParquetFile) -> pa.Array | None:
    """Which images' ``bytes`` are null; None if the file's statistics say that none is."""
    metadata = parquet.metadata
    if parquet.schema_arrow.field("image").type.field("bytes").type == pa.null():
        return pa.repeat(True, metadata.num_rows)
    columns = [metadata.schema.column(n).path for n in range(metadata.num_columns)]
    column = columns.index("image.bytes")
    masks, some = [], False
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        statistics = group.column(column).statistics
        nulls = statistics.null_count if statistics and statistics.has_null_count else 0
        some |= nulls > 0
        if nulls in (0, group.num_rows):
            masks.append(pa.repeat(nulls > 0, group.num_rows))
        else:
            images = parquet.read_row_group(number, ["image.bytes"], use_threads=False)["image"]
            masks.append(pc.struct_field(images.combine_chunks(), "bytes").is_null())
    return pa.chunked_array(masks, pa.bool_()).combine_chunks() if some else None


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
    is_named = "path" in fields and fields.get("bytes") == pa.null()
    if not is_named and fields.get("bytes") not in (pa.binary(), pa.large_binary()):
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
