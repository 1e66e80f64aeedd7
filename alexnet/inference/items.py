"""What is predicted: one item for each image file, member of an archive or row of a Parquet file.

A listing is a sequence of items in Parquet files, from which any process can read its share.
"""

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

WHOLE = -1
"""``Item.offset`` of a whole file, and ``Item.row`` of what is not in a Parquet file."""


class Item(NamedTuple):
    """One image to be, and where its bytes are."""

    path: str
    """Its name in the output, text of ``storage.names``; for a part of a file, ``<file>/<name in
    it>``."""
    file: str
    """The file that contains its bytes: text of ``storage.names``, or a URI."""
    real: str
    """What tells it from other items: its path without links."""
    size: int
    """Bytes; ``walk.UNKNOWN`` if they are not known."""
    modified_ns: int
    """Of the file."""
    offset: int = WHOLE
    """Of its first byte in the file; ``WHOLE``: it is the whole file."""
    row: int = WHOLE
    """Its row in the Parquet file ``file``."""
    problem: str = ""
    """Why it can't be read, found when it was listed; empty if there is no reason."""


SCHEMA = pa.schema(
    [
        ("path", pa.string()),
        ("file", pa.string()),
        ("size", pa.int64()),
        ("offset", pa.int64()),
        ("row", pa.int64()),
        ("problem", pa.string()),
        ("key", pa.uint64()),
        ("version", pa.uint64()),
    ]
)
"""A listing. ``path`` and ``file`` are as in ``Item``; ``key`` is a hash of what tells an item
from others, ``version`` a hash of that with its size and time of modification."""


class Hashes(NamedTuple):
    """64-bit hashes of some items; among ten million, two are equal once in 400,000 listings."""

    keys: NDArray[np.uint64]
    versions: NDArray[np.uint64]


def hashes(items: Sequence[Item]) -> Hashes:
    """Key and version of each item."""
    keys = [f"{item.real}\0{item.row}" for item in items]
    versions = [
        f"{key}\0{item.size}\0{item.modified_ns}\0{item.problem}"
        for key, item in zip(keys, items, strict=True)
    ]
    return Hashes(_hash(keys), _hash(versions))


def _hash(texts: Sequence[str]) -> NDArray[np.uint64]:
    digests = (hashlib.blake2b(text.encode(), digest_size=8).digest() for text in texts)
    return np.frombuffer(b"".join(digests), np.uint64)


def to_table(items: Sequence[Item]) -> pa.Table:
    """Items as rows of a listing."""
    keys, versions = hashes(items)
    columns = [
        *([getattr(item, name) for item in items] for name in ListedItem._fields),
        keys,
        versions,
    ]
    arrays = [pa.array(column, kind) for column, kind in zip(columns, SCHEMA.types, strict=True)]
    return pa.table(arrays, schema=SCHEMA)


class ListedItem(NamedTuple):
    """An item of a listing: all that is needed to read it."""

    path: str
    file: str
    size: int
    offset: int
    row: int
    problem: str


def from_table(table: pa.Table) -> list[ListedItem]:
    """Rows of a listing as items."""
    columns = (table[name].to_pylist() for name in ListedItem._fields)
    return [ListedItem(*values) for values in zip(*columns, strict=True)]
