"""Parquet shards of 256x256 images.

A data set is one folder:

    train/part-00000.parquet ...   val/part-00000.parquet ...
    manifest.json   rejects.parquet   statistics.npz

Shards are ordinary Parquet files without compression (JPEG can't be compressed further), in row
groups that are small enough for random access. The module ``manifest`` defines the manifest.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import IO

import pyarrow as pa
import pyarrow.parquet as pq

from alexnet import storage
from alexnet.errors import CorruptShardError, one_line

FORMAT = 2
"""Version of the manifest and the shards."""
ROW_GROUP_ROWS = 64
"""Rows in every row group of a shard but the last."""
SPLITS = ("train", "val")

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


def read_row_group(group: RowGroup, columns: list[str], *, verify: bool = True) -> pa.Table:
    """Some columns of one row group.

    Args:
        group: the row group.
        columns: names of the columns.
        verify: whether to compare the pages with their checksums.

    Raises:
        CorruptShardError: the shard is missing or damaged.
    """
    try:
        with storage.open_input(group.path) as file:
            # Adjacent columns are read with one request. Arrow's threads are not used: callers read
            # several row groups in their own threads.
            table = pq.ParquetFile(
                file, page_checksum_verification=verify, pre_buffer=True
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


def rejects_table(rejects: Iterator[Mapping[str, str]]) -> pa.Table:
    """Rejected images as a table of ``REJECTS_SCHEMA``, sorted by key."""
    return pa.Table.from_pylist(list(rejects), schema=REJECTS_SCHEMA).sort_by("key")


def write_table(path: str, table: pa.Table) -> None:
    """Write a table as one Parquet file, atomically."""
    with storage.atomic_output(path) as file:
        pq.write_table(table, file)
