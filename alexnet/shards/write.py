"""The work that makes one shard: read, decode, resize, encode, write, report.

It depends on the plan alone, so it gives the same bytes wherever and whenever it is done. The
next images are read while these are decoded, and the shard is written a row group at a time, so
that memory does not grow with the shard.
"""

import hashlib
from collections import deque
from collections.abc import Iterator, Mapping
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

# Locally one thread reads ahead, many images at a time, which costs next to nothing. From an
# object store every image is a request, and many must be on their way at once.
_LOCAL = (1, 32)
_REMOTE = (32, 1)

_MAX_BYTES = 2**29
"""Twice an uncompressed image of the largest size that is read."""


@dataclass(frozen=True, slots=True)
class Report:
    """What became of a unit's images."""

    shard: Shard
    rejects: tuple[dict[str, str], ...]
    """``key``, ``split``, ``reason`` and ``detail`` of each."""

    def agrees(self, size: int | None) -> bool:
        """Whether the shard's file has its bytes; a shard of rejects alone has no file."""
        return not self.shard.rows or size == self.shard.bytes


def make_shard(unit: ShardTask) -> Report:
    """Make a unit's shard; its report, written last, says that it is done.

    Raises:
        UserError: the source can't be read any more; single unreadable images are rejects.
        OSError: the shard can't be written.
    """
    # Needs torch, which takes seconds to import, and not everyone who reads reports makes shards.
    from alexnet.shards.pixel_accumulator import PixelAccumulator

    summing = PixelAccumulator()
    rejects: list[dict[str, str]] = []

    def row_groups() -> Iterator[pa.Table]:
        rows: list[dict[str, Any]] = []
        for planned, data in _read_ahead(read_plan(unit)):
            decoded = data if isinstance(data, Rejection) else decode(data)
            if isinstance(decoded, Rejection):
                found = {"reason": decoded.reason, "detail": decoded.detail}
                rejects.append({"key": planned["key"], "split": unit.split} | found)
                continue
            assert isinstance(data, bytes)
            summing.add(decoded.pixels)
            rows.append(_row(planned, data, decoded, unit.encoding))
            if len(rows) == ROW_GROUP_ROWS:
                yield pa.Table.from_pylist(rows, schema=SCHEMA)
                rows = []
        if rows:
            yield pa.Table.from_pylist(rows, schema=SCHEMA)

    shard = write_shard(unit.folder, unit.file, row_groups())
    if unit.split == "train":
        write_sums(unit.sums, summing.sums())
    storage.write_json(unit.report, asdict(shard) | {"rejects": rejects})
    return Report(shard, tuple(rejects))


def is_made(unit: ShardTask) -> bool:
    """Whether the unit's report exists and its shard has the size that the report says."""
    if not storage.is_file(unit.report):
        return False
    return read_report(unit).agrees(storage.size(storage.join(unit.folder, unit.file)))


def read_report(unit: ShardTask) -> Report:
    """The report of a unit that is done."""
    value = storage.read_json(unit.report)
    rejects = tuple(value.pop("rejects"))
    return Report(Shard(**value), rejects)


def _read_ahead(
    planned: list[dict[str, Any]],
) -> Iterator[tuple[dict[str, Any], bytes | Rejection]]:
    """The planned images' bytes, in order; the next ones are read in the background."""
    count, together = _REMOTE if storage.is_remote(planned[0]["path"]) else _LOCAL
    pieces = [planned[start : start + together] for start in range(0, len(planned), together)]
    with ThreadPoolExecutor(count) as threads:
        reading: deque[Future[list[bytes | Rejection]]] = deque()
        try:
            for number, piece in enumerate(pieces):
                for next_piece in pieces[number + len(reading) : number + count + 1]:
                    reading.append(
                        threads.submit(lambda rows: [_read(row) for row in rows], next_piece)
                    )
                yield from zip(piece, reading.popleft().result(), strict=True)
        finally:
            threads.shutdown(cancel_futures=True)


def _read(planned: Mapping[str, Any]) -> bytes | Rejection:
    """One image's bytes.

    Raises:
        UserError: not this image but the place where it lies can't be read.
    """
    path, offset, size = planned["path"], planned["offset"], planned["size"]
    if size > _MAX_BYTES:
        return Rejection("unsupported", f"{size:,} bytes, the limit is {_MAX_BYTES:,}")
    try:
        return storage.read_range(path, offset, size)
    except EOFError as error:
        return Rejection("truncated", one_line(error))
    except OSError as error:
        its_own = isinstance(error, FileNotFoundError | PermissionError) and not offset
        if its_own and storage.exists(path.rpartition("/")[0]):
            return Rejection("unreadable", one_line(error))
        raise UserError(
            f"{path}: the source can't be read any more ({one_line(error)}); when it can, "
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
