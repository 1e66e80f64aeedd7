"""Parquet shards of 256x256 images, and the manifest that lists all of them.

A data set is one folder:

    train/part-00000.parquet ...   val/part-00000.parquet ...
    manifest.json   rejects.parquet   statistics.npz

The manifest is written last: a folder with a manifest is complete. Shards are ordinary Parquet
files without compression (JPEG can't be compressed further), in row groups that are small enough
for random access.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from alexnet import storage
from alexnet.errors import CorruptDatasetError, CorruptShardError, MissingDatasetError, one_line
from alexnet.sources.labels import Label

FORMAT = 2
"""Version of the manifest and the shards."""
ROW_GROUP_ROWS = 64
"""Rows in every row group of a shard but the last."""
SPLITS = ("train", "val")

MANIFEST = "manifest.json"
REJECTS = "rejects.parquet"
STATISTICS = "statistics.npz"
EXTRA_FILES = (REJECTS, STATISTICS)
"""The files whose sha256 the manifest contains, apart from the shards."""

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
"""``image``: JPEG, or 196,608 raw bytes of RGB rows. ``width``, ``height`` and ``sha256`` are those
of the original file; ``label`` is -1 where it is unknown."""

REJECTS_SCHEMA = pa.schema(
    [(name, pa.string()) for name in ("key", "split", "reason", "detail")],
)


@dataclass(frozen=True, slots=True)
class Shard:
    """One Parquet file: its path below the data set's folder, its rows, bytes and sha256."""

    file: str
    rows: int
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class RowGroup:
    """A row group of a shard: the unit in which shards are read."""

    path: str
    """Of the shard."""
    number: int
    """Of the row group within the shard."""
    rows: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """Content and origin of a data set."""

    folder: str
    plan_digest: str
    """``plan.plan_digest`` of the source and the settings; also the name of the folder."""
    source: str
    """Path of the raw images."""
    layout: str
    """Of the raw images: a ``sources.read.Layout``."""
    settings: Mapping[str, Any]
    labels: tuple[Label, ...]
    shards: Mapping[str, tuple[Shard, ...]]
    """By split."""
    rejected: Mapping[str, int]
    """Number of rejected images by split."""
    files: Mapping[str, str]
    """sha256 of each of ``EXTRA_FILES``."""
    origin: Mapping[str, str] = field(default_factory=dict)
    """Digests of the source's files and of the code; empty if they are not known."""

    @property
    def rejects_path(self) -> str:
        """Path of the table of rejected images."""
        return storage.join(self.folder, REJECTS)

    @property
    def statistics_path(self) -> str:
        """Path of the training set's pixel statistics."""
        return storage.join(self.folder, STATISTICS)

    def rows(self, split: str) -> int:
        """Number of images in a split."""
        return sum(shard.rows for shard in self.shards[split])

    def content_digest(self, split: str | None = None) -> str:
        """sha256 of the labels and of the shards' sha256, in one split or in all."""
        splits = SPLITS if split is None else (split,)
        digests = [shard.sha256 for name in splits for shard in self.shards[name]]
        labels = [list(label) for label in self.labels]
        return hashlib.sha256(json.dumps([digests, labels]).encode()).hexdigest()

    def row_groups(self, split: str) -> list[RowGroup]:
        """The split's row groups in order; no file is opened."""
        groups = []
        for shard in self.shards[split]:
            path = storage.join(self.folder, shard.file)
            for start in range(0, shard.rows, ROW_GROUP_ROWS):
                rows = min(ROW_GROUP_ROWS, shard.rows - start)
                groups.append(RowGroup(path, start // ROW_GROUP_ROWS, rows))
        return groups


def manifest_path(folder: str) -> str:
    """Path of a data set's manifest."""
    return storage.join(folder, MANIFEST)


def write_shard(folder: str, name: str, row_groups: Iterable[pa.Table]) -> Shard:
    """Write one shard atomically, row group by row group; the same rows give the same bytes.

    Every row group but the last has ``ROW_GROUP_ROWS`` rows. If there are none, no file is written
    and the shard has 0 rows.
    """
    groups = iter(row_groups)
    group = next(groups, None)
    if group is None:
        return Shard(name, 0, 0, "")
    rows = 0
    with storage.atomic_output(storage.join(folder, name)) as file:
        output = _HashingFile(file)
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


class _HashingFile:
    """A file to write that counts and hashes the written bytes."""

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
        """Does nothing: ``storage.atomic_output`` flushes the file."""

    def close(self) -> None:
        """Does nothing: ``storage.atomic_output`` closes the file."""


def read_row_group(group: RowGroup, columns: list[str]) -> pa.Table:
    """Some columns of one row group.

    Raises:
        CorruptShardError: the shard is missing or damaged.
    """
    try:
        with storage.open_input(group.path) as file:
            # Adjacent columns are read with one request. Arrow's threads are not used: callers read
            # several row groups in their own threads.
            table = pq.ParquetFile(
                file, page_checksum_verification=True, pre_buffer=True
            ).read_row_group(group.number, columns=columns, use_threads=False)
        # The reader ignores columns that the file does not have.
        expected = [(name, SCHEMA.field(name).type) for name in columns]
        actual = [(field.name, field.type) for field in table.schema]
        if table.num_rows != group.rows or actual != expected:
            raise ValueError(
                f"row group {group.number} has {table.num_rows} rows of {_describe(actual)}, "
                f"not {group.rows} of {_describe(expected)}"
            )
    except (OSError, ValueError, IndexError, pa.ArrowException) as error:
        raise CorruptShardError(
            f"{group.path}: the shard can't be read ({one_line(error)})"
        ) from error
    return table


def _describe(columns: list[tuple[str, pa.DataType]]) -> str:
    return " and ".join(f"{name} ({kind})" for name, kind in columns) or "no column"


def write_manifest(manifest: Manifest) -> None:
    """Write ``manifest.json``; with it the data set is complete."""
    # Scripts read this file, so its keys keep their names: "digest" is the plan digest, "content"
    # the content digest and "form" the layout.
    value = {
        "format": FORMAT,
        "digest": manifest.plan_digest,
        "content": manifest.content_digest(),
        "source": manifest.source,
        "form": manifest.layout,
        "settings": dict(manifest.settings),
        "images": {split: manifest.rows(split) for split in SPLITS},
        "rejected": dict(manifest.rejected),
        "files": dict(manifest.files),
        "origin": dict(manifest.origin),
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
    storage.write_json(manifest_path(manifest.folder), value)


def read_manifest(folder: str) -> Manifest:
    """The manifest of a complete data set.

    Raises:
        MissingDatasetError: there is no manifest.
        CorruptDatasetError: the manifest is damaged or of another version.
    """
    path = manifest_path(folder)
    if not storage.is_file(path):
        raise MissingDatasetError(f"{path}: no such manifest")
    try:
        value = storage.read_json(path)
        if (value["format"], value["row_group_rows"]) != (FORMAT, ROW_GROUP_ROWS):
            raise ValueError("written by another version")
        return Manifest(
            folder=folder,
            plan_digest=value["digest"],
            source=value["source"],
            layout=value["form"],
            settings=value["settings"],
            labels=tuple(Label(**label) for label in value["labels"]),
            shards={
                split: tuple(Shard(**shard) for shard in value["shards"][split]) for split in SPLITS
            },
            rejected=value["rejected"],
            files=value["files"],
            origin=value.get("origin", {}),
        )
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptDatasetError(
            f"{path}: not a manifest that this version can read ({one_line(error)})"
        ) from error


def rejects_table(rejects: Iterator[Mapping[str, str]]) -> pa.Table:
    """Rejected images as a table of ``REJECTS_SCHEMA``, sorted by key."""
    return pa.Table.from_pylist(list(rejects), schema=REJECTS_SCHEMA).sort_by("key")


def write_table(path: str, table: pa.Table) -> None:
    """Write a table as one Parquet file, atomically."""
    with storage.atomic_output(path) as file:
        pq.write_table(table, file)
