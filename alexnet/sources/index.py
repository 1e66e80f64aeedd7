"""The index of a data set's raw images: one row per image, a million rows in a few buffers.

An index is put together from parts, each made from one class or split by itself. A part also
tells what it was made from, so that the whole has a fingerprint: a digest of the files' names,
sizes and times of change, which is cheap to know and changes whenever an image does.
"""

import hashlib
import posixpath
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from alexnet.errors import UserError
from alexnet.sources.labels import Label
from alexnet.sources.tar import Members
from alexnet.storage import File

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")

_LOCATED = pa.schema(
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
        _LOCATED.field("key"),
        pa.field("split", pa.string(), nullable=False),
        pa.field("wnid", pa.string(), nullable=False),
        *(_LOCATED.field(name) for name in ("label", "path", "offset", "size")),
    ]
)
"""``label`` is the class index; the image is ``size`` bytes at ``offset`` of the file ``path``
(inside Parquet: see ``part_of_parquet``)."""


class Part(NamedTuple):
    """Rows of one class or split."""

    rows: pa.Table
    """Keys, class indices and byte ranges."""
    digest: bytes
    """Of the files that the rows were made from."""


def part_of_archive(
    archive: File, keys: Sequence[str], classes: Sequence[int], members: Members
) -> Part:
    """Images inside an archive."""
    paths = pa.repeat(archive.path, len(keys))
    rows = _table(keys, classes, paths, members.offsets, members.sizes)
    return Part(rows, _digest([(posixpath.basename(archive.path), archive)]))


def part_of_files(keys: Sequence[str], classes: Sequence[int], files: Sequence[File]) -> Part:
    """Images that are files of their own."""
    paths = [file.path for file in files]
    sizes = [file.size for file in files]
    rows = _table(keys, classes, paths, [0] * len(files), sizes)
    return Part(rows, _digest(zip(keys, files, strict=True)))


def part_of_parquet(
    keys: pa.Array, classes: pa.Array, files: Sequence[File], counts: Sequence[int]
) -> Part:
    """Images inside Parquet files, which have no byte range yet.

    Until ``spool`` gives them one, ``offset`` is the row in the file ``path`` and ``size`` is 0.
    """
    paths = pa.array([file.path for file in files], pa.string()).take(
        pa.array(np.repeat(np.arange(len(files)), counts))
    )
    rows = np.concatenate([np.arange(count) for count in counts])
    table = _table(keys, classes, paths, rows, np.zeros(len(rows), np.int64))
    return Part(table, _digest((posixpath.basename(file.path), file) for file in files))


def merge(parts: Sequence[Part], labels: Sequence[Label]) -> pa.Table:
    r"""The index, of ``SCHEMA`` and sorted by key; in keys ``\x0a`` stands for a line's end.

    Raises:
        UserError: two images have the same key.
    """
    rows = pa.concat_tables([part.rows for part in parts])
    keys = _without_controls(rows["key"])
    rows = rows.set_column(0, _LOCATED.field("key"), keys).sort_by("key")
    _refuse_repeated_keys(rows)
    wnids = pa.array([label.wnid for label in labels], pa.string())
    split = pc.if_else(pc.starts_with(rows["key"], "train/"), "train", "val")
    derived = {"split": split, "wnid": wnids.take(rows["label"])}
    columns = [derived[name] if name in derived else rows[name] for name in SCHEMA.names]
    return pa.table(columns, schema=SCHEMA)


def fingerprint(parts: Iterable[Part], lists: Iterable[File]) -> str:
    """Digest of the files that the parts were made from and of the lists of labels beside them."""
    named = ((posixpath.basename(file.path), file) for file in lists)
    return hashlib.sha256(b"".join(part.digest for part in parts) + _digest(named)).hexdigest()


def _table(*columns: Sequence[object] | pa.Array | NDArray[np.int64]) -> pa.Table:
    arrays = [pa.array(column, field.type) for column, field in zip(columns, _LOCATED, strict=True)]
    return pa.table(arrays, schema=_LOCATED)


def _digest(named: Iterable[tuple[str, File]]) -> bytes:
    digest = hashlib.sha256()
    for name, file in named:
        digest.update(f"{name}\0{file.size}\0{file.modified_ns}\n".encode())
    return digest.digest()


def _without_controls(keys: pa.ChunkedArray) -> pa.ChunkedArray:
    """Keys that stay on their line, and do nothing to a terminal, whatever files are called."""
    if not pc.any(pc.match_substring_regex(keys, _CONTROL.pattern), min_count=0).as_py():
        return keys
    clean = [_CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", key) for key in keys.to_pylist()]
    return pa.chunked_array([clean], pa.string())


def _refuse_repeated_keys(rows: pa.Table) -> None:
    keys = rows["key"]
    repeated = pc.index(pc.equal(keys[1:], keys[:-1]), True).as_py()
    if repeated >= 0:
        first, second = rows.slice(repeated, 2).to_pylist()
        raise UserError(
            f"{first['path']}: {first['key']} lies at byte {first['offset']} and again in "
            f"{second['path']} at byte {second['offset']}; remove one of them"
        )
