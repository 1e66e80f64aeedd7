"""Execution of one shard task: read, decode, resize, encode and write its images.

It depends on the plan only, so a repeated execution writes the same bytes. The next images are read
while the present ones are decoded. The shard is written one row group at a time, so memory does not
depend on the size of the shard.
"""

import hashlib
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa

from alexnet import storage
from alexnet.errors import UserError, one_line
from alexnet.shards.codec import Encoding, encode
from alexnet.shards.decode import Decoded, Rejection, decode
from alexnet.shards.format import ROW_GROUP_ROWS, SCHEMA, Shard, write_shard
from alexnet.shards.pixel_stats import write_sums
from alexnet.shards.plan import ShardTask, read_plan
from alexnet.sources.index import read_row

# Threads, and images that a thread reads in one call. A local disk needs one thread. In an object
# store every image is a request, and many requests have to run at the same time.
_LOCAL = (1, 32)
_REMOTE = (32, 1)

MAX_BYTES = 2**29
"""Twice the size of an uncompressed image with the largest number of pixels that is decoded."""


@dataclass(frozen=True, slots=True)
class ShardResult:
    """The shard that a task wrote, and the images that it rejected."""

    shard: Shard
    """It has 0 rows and no file if all images were rejected."""
    rejects: tuple[dict[str, str], ...]
    """``key``, ``split``, ``reason`` and ``detail`` of each."""


def make_shard(task: ShardTask) -> ShardResult:
    """Write a task's shard, its sums and then its result, with which the task is finished.

    Raises:
        UserError: the source as a whole can't be read; single unreadable images are rejects.
        OSError: the shard can't be written.
    """
    # This imports torch, which takes seconds, and not every process that reads results makes
    # shards.
    from alexnet.shards.pixel_accumulator import PixelAccumulator

    accumulator = PixelAccumulator()
    rejects: list[dict[str, str]] = []

    def row_groups() -> Iterator[pa.Table]:
        rows: list[dict[str, Any]] = []
        for planned, data in _read_ahead(read_plan(task)):
            decoded = data if isinstance(data, Rejection) else decode(data)
            if isinstance(decoded, Rejection):
                image = {"key": planned["key"], "split": task.split}
                rejects.append(image | {"reason": decoded.reason, "detail": decoded.detail})
                continue
            assert isinstance(data, bytes)
            accumulator.add(decoded.pixels)
            rows.append(_row(planned, data, decoded, task.encoding))
            if len(rows) == ROW_GROUP_ROWS:
                yield pa.Table.from_pylist(rows, schema=SCHEMA)
                rows = []
        if rows:
            yield pa.Table.from_pylist(rows, schema=SCHEMA)

    shard = write_shard(task.folder, task.file, row_groups())
    if task.split == "train":
        write_sums(task.sums_path, accumulator.sums())
    storage.write_json(task.result_path, asdict(shard) | {"rejects": rejects})
    return ShardResult(shard, tuple(rejects))


def finished_result(
    task: ShardTask, size_of: Callable[[str], int] = storage.size
) -> ShardResult | None:
    """The result of a finished task; None if its shard has to be written.

    A task is finished if its result exists and its shard has the size that the result contains.

    Args:
        task: the task.
        size_of: returns the bytes in a file, -1 if there is no such file.
    """
    if size_of(task.result_path) < 0:
        return None
    try:
        result = read_result(task)
    except (ValueError, KeyError, TypeError):  # Damaged.
        return None
    if result.shard.rows and size_of(task.shard_path) != result.shard.bytes:
        return None
    return result


def read_result(task: ShardTask) -> ShardResult:
    """The result that a task wrote."""
    value = storage.read_json(task.result_path)
    rejects = tuple(value.pop("rejects"))
    return ShardResult(Shard(**value), rejects)


def _read_ahead(
    planned: list[dict[str, Any]],
) -> Iterator[tuple[dict[str, Any], bytes | Rejection]]:
    """The planned images' bytes, in order; the next ones are read in the background."""
    count, chunk_size = _REMOTE if storage.is_remote(planned[0]["path"]) else _LOCAL
    chunks = [planned[start : start + chunk_size] for start in range(0, len(planned), chunk_size)]
    with ThreadPoolExecutor(count) as threads:
        pending: deque[Future[list[bytes | Rejection]]] = deque()
        try:
            for number, chunk in enumerate(chunks):
                for next_chunk in chunks[number + len(pending) : number + count + 1]:
                    pending.append(
                        threads.submit(lambda rows: [_read(row) for row in rows], next_chunk)
                    )
                yield from zip(chunk, pending.popleft().result(), strict=True)
        finally:
            threads.shutdown(cancel_futures=True)


def _read(planned: Mapping[str, Any]) -> bytes | Rejection:
    """One image's bytes.

    Raises:
        UserError: not only this image but its folder or archive can't be read.
    """
    path, offset, size = planned["path"], planned["offset"], planned["size"]
    if size > MAX_BYTES:
        return Rejection("unsupported", f"{size:,} bytes, the limit is {MAX_BYTES:,}")
    try:
        return read_row(planned)
    except EOFError as error:
        return Rejection("truncated", one_line(error))
    except OSError as error:
        only_this_file = isinstance(error, FileNotFoundError | PermissionError) and not offset
        if only_this_file and storage.exists(path.rpartition("/")[0]):
            return Rejection("unreadable", one_line(error))
        raise UserError(
            f"{path}: the source can't be read any more ({one_line(error)}); make it readable and "
            "give the same command again: finished shards are kept"
        ) from error


def _row(
    planned: Mapping[str, Any], data: bytes, decoded: Decoded, encoding: Encoding
) -> dict[str, Any]:
    """One row of the shard."""
    return {
        "key": planned["key"],
        "label": planned["label"],
        "wnid": planned["wnid"],
        "image": encode(decoded.pixels, encoding),
        "width": decoded.width,
        "height": decoded.height,
        "sha256": hashlib.sha256(data).hexdigest(),
    }
