"""Items of a listing → decoded images, or the reason for which there is none.

An item's own fault is a rejection. A source that can't be read any more, such as a drive or a store
that does not answer, is an error: no item is rejected for it.
"""

import errno
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from alexnet import storage
from alexnet.errors import UserError, one_line
from alexnet.inference.items import WHOLE, ListedItem
from alexnet.recipes import IMAGE_SIZE
from alexnet.shards.codec import decode_into
from alexnet.shards.decode import Decoded, Rejection, decode
from alexnet.shards.write import MAX_BYTES
from alexnet.storage.names import path_bytes

READ_AHEAD_BYTES = 2**24
"""A larger file is read only when it is decoded, so that few of them are in memory."""

_SOURCE_LOST = {
    errno.ESTALE,
    errno.ENOTCONN,
    errno.ETIMEDOUT,
    errno.EHOSTUNREACH,
    errno.ENETUNREACH,
    errno.ECONNRESET,
    errno.EMFILE,
    errno.ENFILE,
    errno.ENOMEM,
}
"""What a network drive that is lost, or a computer that is short of something, reports."""


class StoredImage(NamedTuple):
    """A row of a shard: a 256x256 image, and what the shard says about its original."""

    data: bytes
    sha256: str
    width: int
    height: int


Content = bytes | StoredImage | Rejection | None
"""What was read of an item; None if it is to be read later."""


class Image(NamedTuple):
    """What became of an item."""

    decoded: Decoded | Rejection
    sha256: str | None
    """Of the original's bytes, 64 hexadecimal digits; None if they could not be read."""


def read_contents(
    items: Sequence[ListedItem], read: Callable[[ListedItem], Content], threads: ThreadPoolExecutor
) -> list[Content]:
    """The contents of some items, in order.

    Args:
        items: of a listing.
        read: reads an item that is not a row of a Parquet file.
        threads: read several objects at a time.

    Raises:
        UserError: the source can't be read any more.
    """
    contents: list[Content] = []
    for (file, in_parquet), group in groupby(items, lambda item: (item.file, item.row != WHOLE)):
        if in_parquet:
            contents += _read_rows(file, [item.row for item in group])
        else:
            contents += (threads.map if storage.is_remote(file) else map)(read, group)
    return contents


def read_now(item: ListedItem) -> bytes | Rejection:
    """An item's bytes."""
    if item.problem:
        reason, _, detail = item.problem.partition(": ")
        assert reason == "unreadable"
        return Rejection("unreadable", detail)
    if item.size > MAX_BYTES:
        return Rejection("unsupported", f"{item.size:,} bytes, the limit is {MAX_BYTES:,}")
    try:
        if item.offset != WHOLE:
            return storage.read_range(item.file, item.offset, item.size)
        if storage.is_remote(item.file):
            return storage.read_bytes(item.file)
        with open(path_bytes(item.file), "rb") as file:
            # Python allocates as much as is requested before it reads.
            return file.read(min(os.fstat(file.fileno()).st_size, MAX_BYTES))
    except (OSError, EOFError) as error:
        return _rejection(item, error)


def read_if_small(item: ListedItem) -> Content:
    """An item's bytes, unless it is large."""
    return None if item.size > READ_AHEAD_BYTES else read_now(item)


def decode_content(item: ListedItem, content: Content, *, upright: bool) -> Image:
    """Decode what was read of an item; damaged data raises no exception.

    Raises:
        UserError: the item is large, and the source can't be read any more.
    """
    if content is None:
        content = read_now(item)
    if isinstance(content, Rejection):
        return Image(content, None)
    if isinstance(content, StoredImage):
        return Image(_decode_stored(content), content.sha256)
    return Image(decode(content, upright=upright), hashlib.sha256(content).hexdigest())


def _decode_stored(image: StoredImage) -> Decoded | Rejection:
    pixels: NDArray[np.uint8] = np.empty((IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
    try:
        decode_into(np.frombuffer(image.data, np.uint8), pixels)
    except ValueError as error:
        return Rejection("unreadable", one_line(error))
    return Decoded(pixels, image.width, image.height)


def _rejection(item: ListedItem, error: OSError | EOFError) -> Rejection:
    """The rejection of an item that can't be read.

    Raises:
        UserError: it is the source that can't be read.
    """
    if isinstance(error, EOFError):
        return Rejection("truncated", "the archive ends before the image")
    if storage.is_remote(item.file):
        only_this_item = isinstance(error, FileNotFoundError)
    else:
        folder = os.path.dirname(path_bytes(item.file))
        only_this_item = error.errno not in _SOURCE_LOST and os.path.isdir(folder)
    if only_this_item and item.offset == WHOLE:
        return Rejection("unreadable", error.strerror or "no such object")
    raise _lost(item.file, error)


def _lost(file: str, error: Exception) -> UserError:
    return UserError(
        f"{file}: the source can't be read any more ({one_line(error)}); "
        "make it readable and give the same command again: finished parts are kept"
    )


def _read_rows(path: str, rows: Sequence[int]) -> list[Content]:
    """Images in some rows, ascending, of a Parquet file."""
    try:
        return list(_iterate_rows(path, rows))
    except (OSError, pa.ArrowException) as error:
        # pyarrow reports damaged data as an OSError without a number.
        if storage.is_remote(path) or (isinstance(error, OSError) and error.errno):
            raise _lost(path, error) from error
        damaged = Rejection("unreadable", f"damaged Parquet file ({one_line(error)})")
        return [damaged] * len(rows)


def _iterate_rows(path: str, rows: Sequence[int]) -> Iterator[Content]:
    wanted = set(rows)
    with storage.open_input(path) as opened:
        file = pq.ParquetFile(opened, page_checksum_verification=True)
        schema = file.schema_arrow
        is_shard = {"key", "sha256", "width", "height"} <= set(schema.names)
        in_struct = pa.types.is_struct(schema.field("image").type)
        columns = ["image.bytes" if in_struct else "image"]
        columns += ["sha256", "width", "height"] if is_shard else []
        first = 0
        for number in range(file.num_row_groups):
            start, first = first, first + file.metadata.row_group(number).num_rows
            if not wanted.isdisjoint(range(start, first)):
                batches = file.iter_batches(32, [number], columns=columns, use_threads=False)
                yield from _wanted_rows(batches, start, wanted, max(wanted), is_shard=is_shard)


def _wanted_rows(
    batches: Iterable[pa.RecordBatch], start: int, wanted: set[int], last: int, *, is_shard: bool
) -> Iterator[Content]:
    for batch in batches:
        for index in range(len(batch)):
            if start + index not in wanted:
                continue
            image, *about = (column[index].as_py() for column in batch.columns)
            data = image["bytes"] if isinstance(image, dict) else image
            if data is None:
                yield Rejection("empty", "the row has no image")
            else:
                yield StoredImage(data, *about) if is_shard else data
        start += len(batch)
        if start > last:
            return
