"""The index of a data set's raw images: one row per image, a million rows in a few buffers.

An index is the union of parts, each the rows of one class or split. A part also has a digest of the
files that contain its images. The source's fingerprint is computed from these digests: it depends
on the files' names, sizes and times of modification. So it changes whenever a file is changed, and
no file has to be read for it.
"""

import hashlib
import posixpath
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from alexnet import storage
from alexnet.errors import UserError
from alexnet.sources.account import Account, first_names
from alexnet.sources.labels import Label
from alexnet.sources.tar import NO_TARGET, Members
from alexnet.storage import File

_CONTROL_CHARACTER = re.compile(r"[\x00-\x1f\x7f]")

_PART_SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("label", pa.int32(), nullable=False),
        pa.field("path", pa.string(), nullable=False),
        pa.field("offset", pa.int64(), nullable=False),
        pa.field("size", pa.int64(), nullable=False),
    ]
)

SCHEMA = pa.schema(
    [
        _PART_SCHEMA.field("key"),
        pa.field("split", pa.string(), nullable=False),
        pa.field("wnid", pa.string(), nullable=False),
        *(_PART_SCHEMA.field(name) for name in ("label", "path", "offset", "size")),
    ]
)
"""``label`` is the class index; an image is ``size`` bytes at ``offset`` of the file ``path``, and
``size`` is ``tar.NO_TARGET`` for a link that leads to no file. Images inside Parquet files are the
exception: see ``part_of_parquet``."""


class Part(NamedTuple):
    """Rows of one class or split."""

    rows: pa.Table
    """``key``, ``label``, ``path``, ``offset`` and ``size`` of each image, as in ``SCHEMA``."""
    digest: bytes
    """sha256 of the names, sizes and times of modification of the files in ``path``."""


class Contents(NamedTuple):
    """What the reader of a layout returns."""

    labels: tuple[Label, ...]
    parts: list[Part]
    label_files: list[File]
    """Files that contain labels and no images."""
    account: Account
    """``images`` is set when the parts are merged."""


def read_row(row: Mapping[str, Any]) -> bytes:
    """The bytes of an image that is a byte range.

    Args:
        row: of the index or of a plan.

    Raises:
        FileNotFoundError: there is no such file, or the image is a link that leads to none.
        OSError: the file can't be read.
        EOFError: it ends before the image ends.
    """
    if row["size"] == NO_TARGET:
        raise FileNotFoundError("it leads to a file that does not exist")
    return storage.read_range(row["path"], row["offset"], row["size"])


def part_of_archive(
    archive: File, keys: Sequence[str], classes: Sequence[int], members: Members
) -> Part:
    """The part of images inside one archive."""
    paths = pa.repeat(archive.path, len(keys))
    rows = _table(keys, classes, paths, members.offsets, members.sizes)
    return Part(rows, _digest([(posixpath.basename(archive.path), archive)]))


def part_of_files(keys: Sequence[str], classes: Sequence[int], files: Sequence[File]) -> Part:
    """The part of images that are single files."""
    paths = [file.path for file in files]
    sizes = [file.size for file in files]
    rows = _table(keys, classes, paths, [0] * len(files), sizes)
    return Part(rows, _digest(zip(keys, files, strict=True)))


def part_of_parquet(
    keys: pa.Array, classes: pa.Array, files: Sequence[File], counts: Sequence[int]
) -> Part:
    """The part of images inside Parquet files, which have no byte range yet.

    ``offset`` is the row in the file ``path`` and ``size`` is 0, until ``parquet_extract`` copies
    the images and replaces both by a byte range.

    Args:
        keys: string, one per image.
        classes: int32, the class index of each image.
        files: the files in the order of their images.
        counts: number of images in each file.
    """
    paths = pa.array([file.path for file in files], pa.string()).take(
        pa.array(np.repeat(np.arange(len(files)), counts))
    )
    row_in_file = np.concatenate([np.arange(count) for count in counts])
    table = _table(keys, classes, paths, row_in_file, np.zeros(len(row_in_file), np.int64))
    return Part(table, _digest((posixpath.basename(file.path), file) for file in files))


def merge(parts: Sequence[Part], labels: Sequence[Label]) -> pa.Table:
    r"""The index with columns of ``SCHEMA``, sorted by key; a line break in a key becomes ``\x0a``.

    Raises:
        UserError: two images have the same key.
    """
    rows = pa.concat_tables([part.rows for part in parts])
    keys = _escape_control_characters(rows["key"])
    rows = rows.set_column(0, _PART_SCHEMA.field("key"), keys).sort_by("key")
    _check_unique_keys(rows)
    wnids = pa.array([label.wnid for label in labels], pa.string())
    split = pc.if_else(pc.starts_with(rows["key"], "train/"), "train", "val")
    derived = {"split": split, "wnid": wnids.take(rows["label"])}
    columns = [derived[name] if name in derived else rows[name] for name in SCHEMA.names]
    return pa.table(columns, schema=SCHEMA)


def match_classes(
    path: str, classes: Iterable[str], expected: Iterable[str], label_file: str
) -> None:
    """Check that a file or folder has exactly the classes of the file with the labels.

    Raises:
        UserError: a class is missing or unknown.
    """
    missing, unknown = sorted(set(expected) - set(classes)), sorted(set(classes) - set(expected))
    if missing:
        raise UserError(
            f"{path}: lacks {first_names(missing)}, which {label_file} has (they do not match); "
            "copy or unpack it again if that was interrupted, or use files of one data set"
        )
    if unknown:
        raise UserError(
            f"{path}: contains {first_names(unknown)}, which {label_file} does not have (they do "
            "not match); use files of one data set, or move out what is no class"
        )


def check_splits(root: str, index: pa.Table, *, sizes_known: bool) -> None:
    """Check that each split has a file that may be an image.

    Args:
        root: of the source, for messages.
        index: all its rows.
        sizes_known: whether a size of 0 means an empty file; see ``part_of_parquet``.

    Raises:
        UserError: a split has none, which would be found only after all shards were written.
    """
    for split in ("train", "val"):
        sizes = index.filter(pc.equal(index["split"], split))["size"]
        if not len(sizes) or (sizes_known and pc.max(sizes).as_py() <= 0):
            found = ", only empty files" if len(sizes) or not sizes_known else ""
            remedy = "add or download them"
            if len(sizes) and pc.max(sizes).as_py() == NO_TARGET:
                found = f", only {len(sizes):,} links to nothing"
                remedy = (
                    "restore what they lead to (after git-annex or DVC: get or pull; in a copy, "
                    "copy the files themselves)"
                )
            raise UserError(f"{root}: contains no images of the split {split}{found}; {remedy}")


def source_fingerprint(parts: Iterable[Part], label_files: Iterable[File]) -> str:
    """sha256 of the names, sizes and times of modification of all files of a source.

    Args:
        parts: the parts of the index, with the digests of the files that contain images.
        label_files: the files that contain labels and no images.
    """
    named_files = ((posixpath.basename(file.path), file) for file in label_files)
    digests = b"".join(part.digest for part in parts) + _digest(named_files)
    return hashlib.sha256(digests).hexdigest()


def _table(*columns: Sequence[object] | pa.Array | NDArray[np.int64]) -> pa.Table:
    arrays = [
        pa.array(column, field.type) for column, field in zip(columns, _PART_SCHEMA, strict=True)
    ]
    return pa.table(arrays, schema=_PART_SCHEMA)


def _digest(named_files: Iterable[tuple[str, File]]) -> bytes:
    digest = hashlib.sha256()
    for name, file in named_files:
        digest.update(f"{name}\0{file.size}\0{file.modified_ns}\n".encode())
    return digest.digest()


def _escape_control_characters(keys: pa.ChunkedArray) -> pa.ChunkedArray:
    """Keys that can be printed: they have no line breaks and no terminal commands."""
    pattern = _CONTROL_CHARACTER.pattern
    if not pc.any(pc.match_substring_regex(keys, pattern), min_count=0).as_py():
        return keys

    def escape(match: re.Match[str]) -> str:
        return f"\\x{ord(match[0]):02x}"

    escaped = [_CONTROL_CHARACTER.sub(escape, key) for key in keys.to_pylist()]
    return pa.chunked_array([escaped], pa.string())


def _check_unique_keys(rows: pa.Table) -> None:
    keys = rows["key"]
    repeated = pc.index(pc.equal(keys[1:], keys[:-1]), True).as_py()
    if repeated >= 0:
        first, second = rows.slice(repeated, 2).to_pylist()
        raise UserError(
            f"{first['path']}: {first['key']} is at byte {first['offset']} and again in "
            f"{second['path']} at byte {second['offset']}; remove one of them"
        )
