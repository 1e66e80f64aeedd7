"""Images inside Parquet files, copied once to where they are byte ranges.

A Parquet page is compressed, and to read one image means to read its whole row group; a shuffle
over a million images would read every row group a hundred times. So each Parquet file is read
once from its beginning to its end, and its images are written one behind the other into pieces,
plain files small enough to be held in memory (an object store takes a file only as a whole).
Beside them a table says for each row which bytes of which piece it is; it is written last, so a
file that has one is done.
"""

import hashlib
import posixpath
from collections.abc import Iterator, Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from alexnet import storage
from alexnet.errors import UserError, one_line
from alexnet.sources.index import SCHEMA

_PIECE_BYTES = 64 * 2**20

# Little is in memory at once: a piece, a page (the least that Parquet can be read by), the bytes
# read ahead of it and some rows of images.
_BUFFER_BYTES = 8 * 2**20
_BATCH_ROWS = 32

_RANGES = pa.schema([SCHEMA.field(name) for name in ("path", "offset", "size")])
"""Of a row's image; ``path`` is a piece's name in the spool's folder."""


def files(index: pa.Table) -> list[str]:
    """The Parquet files that an index of the parquet form names, sorted."""
    return sorted(pc.unique(index["path"]).to_pylist())


def copy(path: str, folder: str) -> int:
    """Copy a Parquet file's images into a folder, unless they are there.

    An image that is null becomes one of no bytes.

    Returns:
        The number of bytes copied.

    Raises:
        UserError: the file can't be read.
        OSError: the folder can't be written.
    """
    name = _name(path)
    ranges_path = _ranges_path(folder, name)
    if storage.is_file(ranges_path):
        return 0
    ranges = []
    copied = 0
    for number, images in enumerate(_pieces(_read(path))):
        piece = f"{name}-{number:05d}.bin"
        storage.write_bytes(storage.join(folder, piece), b"".join(images))
        sizes = np.array([len(image) for image in images], np.int64)
        columns = [pa.repeat(piece, len(images)), np.cumsum(sizes) - sizes, sizes]
        ranges.append(pa.table([pa.array(column) for column in columns], schema=_RANGES))
        copied += int(sizes.sum())
    with storage.atomic_output(ranges_path) as file:
        pq.write_table(pa.concat_tables([_RANGES.empty_table(), *ranges]), file)
    return copied


def to_byte_ranges(index: pa.Table, folder: str) -> pa.Table:
    """The index with byte ranges in the spool, where ``copy`` has put all its files.

    Raises:
        UserError: a file has changed since it was copied.
    """
    return relocate(index, {path: _read_ranges(path, folder) for path in files(index)})


def relocate(index: pa.Table, ranges: Mapping[str, pa.Table]) -> pa.Table:
    """The index with each (Parquet file, row) replaced by that row of the file's ranges."""
    counts = [len(table) for table in ranges.values()]
    first_rows = np.cumsum([0, *counts[:-1]])
    file = pc.index_in(index["path"], pa.array(list(ranges), pa.string())).to_numpy()
    row = index["offset"].to_numpy()
    assert np.all(row < np.array(counts)[file])
    moved = pa.concat_tables(ranges.values()).take(pa.array(first_rows[file] + row))
    columns = [moved[name] if name in _RANGES.names else index[name] for name in SCHEMA.names]
    return pa.table(columns, schema=SCHEMA)


def read_image(path: str, row: int) -> bytes:
    """One image's bytes straight from its Parquet file: slow, for a look at a few.

    Raises:
        UserError: the file can't be read.
    """
    return bytes(next(_read(path, start=row)))


def _pieces(images: Iterator[pa.Buffer]) -> Iterator[list[pa.Buffer]]:
    piece: list[pa.Buffer] = []
    size = 0
    for image in images:
        piece.append(image)
        size += len(image)
        if size >= _PIECE_BYTES:
            yield piece
            piece, size = [], 0
    if piece:
        yield piece


def _read(path: str, start: int = 0) -> Iterator[pa.Buffer]:
    """The images' bytes from a row on; a row group is never in memory as a whole."""
    try:
        with storage.open_input(path) as opened:
            file = pq.ParquetFile(
                opened, buffer_size=_BUFFER_BYTES, pre_buffer=False, page_checksum_verification=True
            )
            is_struct = pa.types.is_struct(file.schema_arrow.field("image").type)
            groups = [file.metadata.row_group(n).num_rows for n in range(file.num_row_groups)]
            ends = np.cumsum(groups, dtype=np.int64)
            first = int(np.searchsorted(ends, start, side="right"))
            skip = start - (int(ends[first - 1]) if first else 0)
            for batch in file.iter_batches(
                _BATCH_ROWS,
                row_groups=range(first, len(groups)),
                columns=["image.bytes" if is_struct else "image"],
                use_threads=False,
            ):
                images = batch.column("image")
                if is_struct:
                    images = pc.struct_field(images, "bytes")
                for image in images[skip:]:
                    yield image.as_buffer() or pa.py_buffer(b"")
                skip = max(0, skip - len(images))
    except (OSError, pa.ArrowException) as error:
        raise UserError(
            f"{path}: its images can't be read ({one_line(error)}); get it again"
        ) from error


def _name(path: str) -> str:
    """Of what is kept of a Parquet file: other bytes should have another name.

    Raises:
        UserError: the file is gone.
    """
    try:
        file = storage.stat(path)
    except FileNotFoundError as error:
        raise UserError(f"{path}: is gone; put it back") from error
    stem = posixpath.basename(path).removesuffix(".parquet")
    text = f"{path}\0{file.size}\0{file.modified_ns}"
    return f"{stem}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"


def _ranges_path(folder: str, name: str) -> str:
    return storage.join(folder, f"{name}.parquet")


def _read_ranges(path: str, folder: str) -> pa.Table:
    ranges_path = _ranges_path(folder, _name(path))
    if not storage.is_file(ranges_path):
        raise UserError(f"{path}: has changed meanwhile; give the same command again")
    with storage.open_input(ranges_path) as file:
        ranges = pq.read_table(file)
    places = pc.binary_join_element_wise(folder, ranges["path"], "/")
    return ranges.set_column(0, _RANGES.field("path"), places)
