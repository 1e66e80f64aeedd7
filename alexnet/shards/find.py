"""One row of a data set by its key, for people who ask where something comes from."""

from typing import NamedTuple

import pyarrow.compute as pc

from alexnet.shards.format import SPLITS, RowGroup, read_row_group
from alexnet.shards.manifest import Manifest


class FoundRow(NamedTuple):
    """A row of a shard."""

    key: str
    split: str
    shard: str
    """Path below the data set's folder."""
    image: bytes
    """As it is stored: JPEG, or 196,608 bytes."""
    sha256: str
    """Of the original's bytes."""


def find_row(manifest: Manifest, key: str | None = None) -> FoundRow | None:
    """The row with a key, by default the first validation image; None if there is none.

    Validation shards are searched first. Only keys are read until the row is found.

    Raises:
        CorruptShardError: a shard is missing or damaged.
    """
    for split in reversed(SPLITS):
        for group in manifest.row_groups(split):
            keys = read_row_group(group, ["key"])["key"]
            index = 0 if key is None else pc.index(keys, key).as_py()
            if index >= 0:
                return _row(manifest, split, group, index)
    return None


def _row(manifest: Manifest, split: str, group: RowGroup, index: int) -> FoundRow:
    row = read_row_group(group, ["key", "image", "sha256"]).slice(index, 1).to_pylist()[0]
    shard = group.path.removeprefix(f"{manifest.folder}/")
    return FoundRow(row["key"], split, shard, row["image"], row["sha256"])
