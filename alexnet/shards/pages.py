"""Where the images of a row group are in a shard's file, from the file's own metadata.

Parquet stores the column ``image`` of a row group as pages: a header in Thrift's compact protocol,
then the values. In a shard the pages are of version 1, PLAIN, without compression and without
nulls, so each value is its length, four bytes in little-endian order, and its bytes. Therefore an
image can be used where it is in a mapped file. For any other layout, and for damaged pages, there
is a ``ValueError``: Arrow's reader then decides whether the shard can be read.
"""

import struct
import zlib
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from alexnet.shards.format import SCHEMA

_DATA_PAGE = 0  # Of the enum PageType.
_PLAIN = 0  # Of the enum Encoding.
_MAX_HEADER_BYTES = 200  # Images have no statistics, so it is below 30; bounds the recursion.
_LENGTH = struct.Struct("<I")
# Fields of the structs PageHeader and DataPageHeader.
_TYPE, _SIZE, _STORED_SIZE, _CRC, _DATA_PAGE_HEADER = 1, 2, 3, 4, 5
_VALUES, _ENCODING = 1, 2
# Types of Thrift's compact protocol.
_TRUE, _FALSE, _BYTE, _INTEGERS, _BINARY, _STRUCT = 1, 2, 3, (4, 5, 6), 8, 12


class Chunk(NamedTuple):
    """Where the images of one row group are in the file: from ``start`` up to ``end``, in bytes."""

    start: int
    end: int
    rows: int


@dataclass(frozen=True, slots=True, eq=False)
class ShardLayout:
    """What a mapped shard is read with."""

    size: int
    """Bytes in the file."""
    chunks: tuple[Chunk, ...]
    """Of each row group."""
    labels: tuple[NDArray[np.int32], ...]
    """(rows,) of each row group."""


def read_layout(file: pa.NativeFile) -> ShardLayout:
    """The layout of a shard, with its labels; reads the footer and the column ``label``.

    Raises:
        ValueError: the shard has another layout, or is damaged.
        OSError: the file can't be read.
    """
    size = file.size()
    parquet = pq.ParquetFile(file, page_checksum_verification=True)
    if any(parquet.schema_arrow.field(n).type != SCHEMA.field(n).type for n in ("image", "label")):
        raise ValueError("other types")
    number = parquet.metadata.schema.names.index("image")
    schema = parquet.metadata.schema.column(number)
    if schema.max_definition_level or schema.max_repetition_level:
        raise ValueError("nulls or lists")
    chunks, labels = [], []
    for group in range(parquet.metadata.num_row_groups):
        column = parquet.metadata.row_group(group).column(number)
        if column.compression != "UNCOMPRESSED" or column.has_dictionary_page:
            raise ValueError("compressed or in a dictionary")
        start = column.data_page_offset
        chunks.append(Chunk(start, start + column.total_compressed_size, column.num_values))
        label_column = parquet.read_row_group(group, columns=["label"], use_threads=False)["label"]
        if len(label_column) != column.num_values:
            raise ValueError("the columns have different numbers of rows")
        labels.append(label_column.to_numpy())
    return ShardLayout(size, tuple(chunks), tuple(labels))


def find_values(
    chunk: NDArray[np.uint8], rows: int, *, verify: bool
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Where the values of a column chunk start and end.

    Args:
        chunk: (bytes,), all pages of the chunk.
        rows: values in the chunk.
        verify: whether to compare the pages with their checksums, if they have any.

    Returns:
        Two arrays, (rows,) each: offsets in ``chunk``.

    Raises:
        ValueError: the pages have another layout, or are damaged.
    """
    data = chunk.data
    starts: list[int] = []
    ends: list[int] = []
    position = 0
    while position < len(data):
        header = _Reader(data[position : position + _MAX_HEADER_BYTES])
        page = header.struct()
        position += header.position
        end = position + page.get(_STORED_SIZE, -1)
        values = page.get(_DATA_PAGE_HEADER, {})
        plain = page.get(_TYPE) == _DATA_PAGE and values.get(_ENCODING) == _PLAIN
        if not plain or page.get(_SIZE) != page[_STORED_SIZE] or not position <= end <= len(data):
            raise ValueError("not a plain data page, or damaged")
        crc = page.get(_CRC)
        if verify and crc is not None and zlib.crc32(data[position:end]) != crc % 2**32:
            raise ValueError("the checksum of a page differs")
        for _ in range(values.get(_VALUES, 0)):
            if position + _LENGTH.size > end:
                raise ValueError("a page ends within a value")
            (length,) = _LENGTH.unpack_from(data, position)
            starts.append(position + _LENGTH.size)
            position += _LENGTH.size + length
            ends.append(position)
        if position != end:
            raise ValueError("the values do not fill their page")
    if len(starts) != rows:
        raise ValueError(f"{len(starts)} values, not {rows}")
    return np.array(starts, np.int64), np.array(ends, np.int64)


class _Reader:
    """Reads Thrift's compact protocol, as much of it as page headers need."""

    def __init__(self, data: memoryview) -> None:
        self.data = data
        self.position = 0

    def struct(self) -> dict[int, Any]:
        """The values of a struct by the numbers of its fields."""
        fields: dict[int, Any] = {}
        number = 0
        while first := self.byte():
            delta, kind = first >> 4, first & 15
            number = number + delta if delta else self.integer()
            fields[number] = self.value(kind)
        return fields

    def value(self, kind: int) -> Any:
        if kind in (_TRUE, _FALSE):
            return kind == _TRUE
        if kind == _BYTE:
            return self.byte()
        if kind in _INTEGERS:
            return self.integer()
        if kind == _BINARY:
            self.position += self.unsigned()
            return None
        if kind == _STRUCT:
            return self.struct()
        raise ValueError(f"type {kind} in a page header")

    def byte(self) -> int:
        if self.position >= len(self.data):
            raise ValueError("a page header is cut off")
        self.position += 1
        return self.data[self.position - 1]

    def unsigned(self) -> int:
        result = shift = 0
        while (byte := self.byte()) & 128:
            result |= (byte & 127) << shift
            shift += 7
        return result | byte << shift

    def integer(self) -> int:
        value = self.unsigned()
        return value >> 1 ^ -(value & 1)
