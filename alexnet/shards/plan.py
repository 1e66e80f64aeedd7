"""The plan of a data set: which images are in which shard, in what order.

The plan is a Parquet file: the whole index of raw images in the order in which they are written,
with one row group for each shard. The order is a seeded global shuffle, so that every shard is a
random sample. A data set is named by a digest of everything that its plan depends on. One shard
task writes one shard and depends on the plan only.

While shards are written, ``parts/`` in the data set's folder contains the plan, the tasks' results
and sums, the images extracted from Parquet files, and a description of the code and the source
that the finished shards were made from. It is deleted when the data set is complete.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from alexnet import storage
from alexnet.shards.codec import Encoding
from alexnet.shards.format import FORMAT, SPLITS
from alexnet.sources.read import Source


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardTask:
    """The work that writes one shard."""

    folder: str
    """Of the data set."""
    split: str
    number: int
    """Of the shard within its split."""
    row_group: int
    """Of the plan."""
    rows: int
    """Images in the plan, also those that will be rejected."""
    encoding: Encoding

    @property
    def file(self) -> str:
        """Path of the shard below the data set's folder."""
        return f"{self.split}/part-{self.number:05d}.parquet"

    @property
    def shard_path(self) -> str:
        """Path of the shard."""
        return storage.join(self.folder, self.file)

    @property
    def result_path(self) -> str:
        """Path of the task's ``write.ShardResult``."""
        return storage.join(parts_folder(self.folder), f"{self.split}-{self.number:05d}.json")

    @property
    def sums_path(self) -> str:
        """Path of the ``pixel_stats.PixelSums`` over the shard's images."""
        return storage.join(parts_folder(self.folder), f"{self.split}-{self.number:05d}.npz")


def parts_folder(folder: str) -> str:
    """Path of a data set's folder for files that are needed only until it is complete."""
    return storage.join(folder, "parts")


def plan_path(folder: str) -> str:
    """Path of a data set's plan."""
    return storage.join(parts_folder(folder), "plan.parquet")


def origin_path(folder: str) -> str:
    """Path of the description of the code and the source of a data set's finished shards."""
    return storage.join(parts_folder(folder), "origin.json")


def extracted_folder(folder: str) -> str:
    """Path of the folder with the images extracted from a source's Parquet files."""
    return storage.join(parts_folder(folder), "extracted")


def plan_digest(source: Source, settings: Mapping[str, Any]) -> str:
    """16 hexadecimal digits that name the shards made from a source with some settings.

    They depend on the images' keys, classes and sizes, but not on the path of the source.
    """
    digest = hashlib.sha256(repr((FORMAT, sorted(settings.items()))).encode())
    digest.update(repr([tuple(label) for label in source.labels]).encode())
    for column in ("key", "wnid", "size"):
        digest.update("\n".join(map(str, source.index[column].to_pylist())).encode() + b"\0")
    return digest.hexdigest()[:16]


def write_plan(
    folder: str, source: Source, encoding: Encoding, rows_per_shard: int, seed: int
) -> list[ShardTask]:
    """Shuffle the index, divide it into shards and write the plan into the data set's folder."""
    tasks: list[ShardTask] = []
    shuffled = _shuffle(source.index, seed)
    with (
        storage.atomic_output(plan_path(folder)) as file,
        pq.ParquetWriter(file, shuffled.schema) as writer,
    ):
        for split in SPLITS:
            rows = shuffled.filter(pc.equal(shuffled["split"], split))
            for number, start in enumerate(range(0, len(rows), rows_per_shard)):
                shard_rows = rows.slice(start, rows_per_shard)
                writer.write_table(shard_rows, row_group_size=rows_per_shard)
                tasks.append(
                    ShardTask(
                        folder=folder,
                        split=split,
                        number=number,
                        row_group=len(tasks),
                        rows=len(shard_rows),
                        encoding=encoding,
                    )
                )
    return tasks


def _shuffle(index: pa.Table, seed: int) -> pa.Table:
    """Rows in the order of a seeded hash of their keys, which no library version changes."""
    salt = seed.to_bytes(8, "big")
    hashes = [
        hashlib.blake2b(key.encode(), digest_size=16, key=salt).digest()
        for key in index["key"].to_pylist()
    ]
    order = pc.sort_indices(pa.array(hashes, pa.binary(16)))
    return index.take(order)


def read_plan(task: ShardTask) -> list[dict[str, Any]]:
    """A task's rows of the index, in the order in which they are written."""
    with storage.open_input(plan_path(task.folder)) as file:
        rows: list[dict[str, Any]] = pq.ParquetFile(file).read_row_group(task.row_group).to_pylist()
    return rows
