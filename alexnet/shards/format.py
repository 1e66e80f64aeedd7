"""Parquet shards of 256x256 images, and the manifest that names every one of them.

A data set lies in one folder:

    train/part-00000.parquet ...   val/part-00000.parquet ...
    manifest.json   rejects.parquet   statistics.npz

The manifest is written last: a folder with a manifest is complete. Shards are ordinary Parquet,
uncompressed (JPEG does not compress further), in row groups small enough to be read at random.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from alexnet import storage
from alexnet.errors import UserError, one_line
from alexnet.sources.labels import Label

FORMAT = 2
ROW_GROUP_ROWS = 64
SPLITS = ("train", "val")
COMPANIONS = ("rejects.parquet", "statistics.npz")
"""The files beside the shards."""

SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("label", pa.int32(), nullable=False),
        pa.field("wnid", pa.string(), nullable=False),
        pa.field("image", pa.binary(), nullable=False),
        pa.field("width", pa.int32(), nullable=False),
        pa.field("height", pa.int32(), nullable=False),
        pa.field("sha256", pa.string(), nullable=False),
    ]
)
"""``image``: JPEG, or 196,608 raw bytes of RGB rows. ``width``, ``height`` and ``sha256`` are
the original file's; ``label`` is -1 where it is unknown."""

REJECTS_SCHEMA = pa.schema(
    [(name, pa.string()) for name in ("key", "split", "reason", "detail")],
)


@dataclass(frozen=True, slots=True)
class Shard:
    """One Parquet file: its path below the data set's folder, and what it holds."""

    file: str
    rows: int
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class RowGroup:
    """A piece of a shard that is read at once."""

    path: str
    number: int
    rows: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What a data set's folder holds, and where it came from."""

    folder: str
    digest: str
    """Of the plan: the source's index, the settings, the seed; also the folder's name."""
    source: str
    form: str
    settings: Mapping[str, Any]
    labels: tuple[Label, ...]
    shards: Mapping[str, tuple[Shard, ...]]
    rejected: Mapping[str, int]
    files: Mapping[str, str]
    """sha256 of each of ``COMPANIONS``."""

    def rows(self, split: str) -> int:
        """Number of images in a split."""
        return sum(shard.rows for shard in self.shards[split])

    def content_digest(self, split: str | None = None) -> str:
        """sha256 of the shards' own digests, of one split or of all: the bytes themselves."""
        splits = SPLITS if split is None else (split,)
        names = [shard.sha256 for name in splits for shard in self.shards[name]]
        labels = [list(label) for label in self.labels]
        return hashlib.sha256(json.dumps([names, labels]).encode()).hexdigest()

    def row_groups(self, split: str) -> list[RowGroup]:
        """The split's row groups in order, known without opening a file."""
        groups = []
        for shard in self.shards[split]:
            path = storage.join(self.folder, shard.file)
            for start in range(0, shard.rows, ROW_GROUP_ROWS):
                rows = min(ROW_GROUP_ROWS, shard.rows - start)
                groups.append(RowGroup(path, start // ROW_GROUP_ROWS, rows))
        return groups


def write_shard(folder: str, name: str, row_groups: Iterable[pa.Table]) -> Shard:
    """Write one shard atomically, row group by row group; the same rows give the same bytes.

    Every row group but the last has ``ROW_GROUP_ROWS`` rows. Without any there is no file, and
    the shard has 0 rows.
    """
    groups = iter(row_groups)
    group = next(groups, None)
    if group is None:
        return Shard(name, 0, 0, "")
    rows = 0
    with storage.atomic_output(storage.join(folder, name)) as file:
        output = _Hashing(file)
        with pq.ParquetWriter(
            pa.PythonFile(output, "w"),
            SCHEMA,
            compression="none",
            use_dictionary=["wnid", "label"],
            write_statistics=["key", "label", "width", "height"],
            write_page_checksum=True,
        ) as writer:
            while group is not None:
                assert 0 < len(group) <= ROW_GROUP_ROWS
                writer.write_table(group)
                rows += len(group)
                group = next(groups, None)
    return Shard(name, rows, output.size, output.digest.hexdigest())


class _Hashing:
    """A file to write that counts and hashes what passes."""

    def __init__(self, file: IO[bytes]) -> None:
        self.digest = hashlib.sha256()
        self.size = 0
        self.closed = False
        self._file = file

    def write(self, data: bytes) -> int:
        self.digest.update(data)
        written = self._file.write(data)
        self.size += written
        return written

    def tell(self) -> int:
        return self.size

    def flush(self) -> None:
        """The file's owner flushes it."""

    def close(self) -> None:
        """The file's owner closes it."""


def read_row_group(group: RowGroup, columns: list[str]) -> pa.Table:
    """Some columns of one row group.

    Raises:
        UserError: the shard is missing or damaged.
    """
    try:
        with storage.open_input(group.path) as file:
            # Neighbouring columns come in one request. More threads would only cost time: callers
            # have their own.
            table = pq.ParquetFile(
                file, page_checksum_verification=True, pre_buffer=True
            ).read_row_group(group.number, columns=columns, use_threads=False)
        # Parquet passes over columns that it doesn't find.
        expected = [(name, SCHEMA.field(name).type) for name in columns]
        found = [(field.name, field.type) for field in table.schema]
        if table.num_rows != group.rows or found != expected:
            raise ValueError(
                f"row group {group.number} has {table.num_rows} rows of {_columns(found)}, "
                f"not {group.rows} of {_columns(expected)}"
            )
    except (OSError, ValueError, IndexError, pa.ArrowException) as error:
        raise UserError(
            f"{group.path}: the shard can't be read ({one_line(error)}); "
            "run pipelines/preprocess.py --verify, which makes damaged shards again"
        ) from error
    return table


def _columns(columns: list[tuple[str, pa.DataType]]) -> str:
    return " and ".join(f"{name} ({kind})" for name, kind in columns) or "nothing"


def write_manifest(manifest: Manifest) -> None:
    """Write ``manifest.json``, which declares the data set complete."""
    value = {
        "format": FORMAT,
        "digest": manifest.digest,
        "content": manifest.content_digest(),
        "source": manifest.source,
        "form": manifest.form,
        "settings": dict(manifest.settings),
        "images": {split: manifest.rows(split) for split in SPLITS},
        "rejected": dict(manifest.rejected),
        "files": dict(manifest.files),
        "row_group_rows": ROW_GROUP_ROWS,
        "labels": [{"wnid": label.wnid, "name": label.name} for label in manifest.labels],
        "shards": {
            split: [
                {"file": s.file, "rows": s.rows, "bytes": s.bytes, "sha256": s.sha256}
                for s in manifest.shards[split]
            ]
            for split in SPLITS
        },
    }
    storage.write_json(storage.join(manifest.folder, "manifest.json"), value)


def read_manifest(folder: str) -> Manifest:
    """The manifest of a complete data set.

    Raises:
        UserError: there is none, or it is of another format.
    """
    path = storage.join(folder, "manifest.json")
    if not storage.is_file(path):
        raise UserError(f"{path}: no such manifest; run pipelines/preprocess.py first")
    try:
        value = storage.read_json(path)
        if (value["format"], value["row_group_rows"]) != (FORMAT, ROW_GROUP_ROWS):
            raise ValueError("written by another version")
        return Manifest(
            folder=folder,
            digest=value["digest"],
            source=value["source"],
            form=value["form"],
            settings=value["settings"],
            labels=tuple(Label(**label) for label in value["labels"]),
            shards={
                split: tuple(Shard(**shard) for shard in value["shards"][split]) for split in SPLITS
            },
            rejected=value["rejected"],
            files=value["files"],
        )
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path}: not a manifest that this version reads ({error}); "
            "run pipelines/preprocess.py --force"
        ) from error


def rejects_table(rejects: Iterator[Mapping[str, str]]) -> pa.Table:
    """Rejected images, sorted by key: ``key``, ``split``, ``reason``, ``detail``."""
    return pa.Table.from_pylist(list(rejects), schema=REJECTS_SCHEMA).sort_by("key")


def write_table(path: str, table: pa.Table) -> None:
    """Write a table that is small enough for memory as one Parquet file, atomically."""
    with storage.atomic_output(path) as file:
        pq.write_table(table, file)
