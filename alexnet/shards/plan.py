"""The plan of a data set: which images go into which shard, in what order.

The plan is the whole index of raw images in the order in which it will be written, one row group
for each shard: a seeded global shuffle, so that any shard is a fair sample. It is named by a
digest of what it depends on. One unit of work makes one shard and depends on the plan alone.
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
    """The work that makes one shard."""

    folder: str
    """Of the data set."""
    split: str
    number: int
    """Of the shard within its split."""
    group: int
    """Row group of the plan."""
    rows: int
    """Images in the plan, rejected ones included."""
    encoding: Encoding

    @property
    def file(self) -> str:
        """The shard's path below the data set's folder."""
        return f"{self.split}/part-{self.number:05d}.parquet"

    @property
    def report(self) -> str:
        """Where the unit's report goes."""
        return storage.join(self.folder, "parts", f"{self.split}-{self.number:05d}.json")

    @property
    def sums(self) -> str:
        """Where the sums over its images go."""
        return storage.join(self.folder, "parts", f"{self.split}-{self.number:05d}.npz")


def plan_digest(source: Source, settings: Mapping[str, Any]) -> str:
    """16 hexadecimal digits that name the shards of a source under some settings.

    They depend on the images' keys, classes and sizes, not on where the source lies.
    """
    digest = hashlib.sha256(repr((FORMAT, sorted(settings.items()))).encode())
    digest.update(repr([tuple(label) for label in source.labels]).encode())
    for column in ("key", "wnid", "size"):
        digest.update("\n".join(map(str, source.index[column].to_pylist())).encode() + b"\0")
    return digest.hexdigest()[:16]


def write_plan(
    folder: str, source: Source, encoding: Encoding, rows_per_shard: int, seed: int
) -> list[ShardTask]:
    """Shuffle, cut into shards, and write the plan where every worker finds it."""
    units: list[ShardTask] = []
    shuffled = _shuffle(source.index, seed)
    with (
        storage.atomic_output(_plan_path(folder)) as file,
        pq.ParquetWriter(file, shuffled.schema) as writer,
    ):
        for split in SPLITS:
            rows = shuffled.filter(pc.equal(shuffled["split"], split))
            for number, start in enumerate(range(0, len(rows), rows_per_shard)):
                part = rows.slice(start, rows_per_shard)
                writer.write_table(part, row_group_size=rows_per_shard)
                units.append(
                    ShardTask(
                        folder=folder,
                        split=split,
                        number=number,
                        group=len(units),
                        rows=len(part),
                        encoding=encoding,
                    )
                )
    return units


def _shuffle(index: pa.Table, seed: int) -> pa.Table:
    """Rows in the order of a keyed hash of their keys: the same on any machine, any version."""
    salt = seed.to_bytes(8, "big")
    hashes = [
        hashlib.blake2b(key.encode(), digest_size=16, key=salt).digest()
        for key in index["key"].to_pylist()
    ]
    order = pc.sort_indices(pa.array(hashes, pa.binary(16)))
    return index.take(order)


def read_plan(unit: ShardTask) -> list[dict[str, Any]]:
    """A unit's rows of the index, in the order in which they will be written."""
    with storage.open_input(_plan_path(unit.folder)) as file:
        rows: list[dict[str, Any]] = pq.ParquetFile(file).read_row_group(unit.group).to_pylist()
    return rows


def _plan_path(folder: str) -> str:
    return storage.join(folder, "parts", "plan.parquet")
