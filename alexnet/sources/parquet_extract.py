"""Copies of the images inside Parquet files, in plain files where each is a byte range.

To read one image from a Parquet file, its whole row group has to be read. A shuffle over a million
images would read every row group a hundred times. So each Parquet file is read once from beginning
to end, and its images are written one after the other into segments: plain files that are small
enough to be held in memory, because an object store takes a file only as a whole. A table in the
same folder has the byte range of each row's image. It is written last: if it exists, all images of
the Parquet file are extracted. An image that is only named, by ``path``, is read from that file.
"""

import contextlib
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
from alexnet.sources.tar import NO_TARGET

SEGMENT_BYTES = 64 * 2**20
"""A segment ends with the first image that makes it as large as this."""

# Memory holds one segment, one page (the smallest unit that can be read from Parquet), the bytes
# that are read ahead and some rows of images.
_BUFFER_BYTES = 8 * 2**20
_BATCH_ROWS = 32

_RANGES = pa.schema([SCHEMA.field(name) for name in ("path", "offset", "size")])
"""The byte range of each row's image; ``path`` is a segment's file name."""


def parquet_files(index: pa.Table) -> list[str]:
    """The paths in the index of a source in the Parquet layout, sorted."""
    return sorted(pc.unique(index["path"]).to_pylist())


def extract_images(path: str, folder: str) -> int:
    """Copy a Parquet file's images into segments in a folder, unless that is already done.

    An image that is null becomes a range of 0 bytes, one whose file is missing one of
    ``NO_TARGET``.

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
    for number, images in enumerate(_segments(_read(path))):
        segment = f"{name}-{number:05d}.bin"
        contents = [image or b"" for image in images]
        storage.write_bytes(storage.join(folder, segment), b"".join(contents))
        lengths = np.array([len(content) for content in contents], np.int64)
        is_missing = np.array([image is None for image in images])
        offsets = np.where(is_missing, 0, np.cumsum(lengths) - lengths)
        sizes = np.where(is_missing, NO_TARGET, lengths)
        columns = [pa.repeat(segment, len(images)), offsets, sizes]
        ranges.append(pa.table([pa.array(column) for column in columns], schema=_RANGES))
        copied += int(lengths.sum())
    with storage.atomic_output(ranges_path) as file:
        pq.write_table(pa.concat_tables([_RANGES.empty_table(), *ranges]), file)
    return copied


def to_byte_ranges(index: pa.Table, folder: str) -> pa.Table:
    """The index with byte ranges of the segments instead of Parquet files and rows.

    Args:
        index: of a source in the Parquet layout.
        folder: into which ``extract_images`` has copied the images of all its files.

    Raises:
        UserError: a Parquet file has changed since its images were extracted.
    """
    return look_up_ranges(
        index, {path: _read_ranges(path, folder) for path in parquet_files(index)}
    )


def look_up_ranges(index: pa.Table, ranges: Mapping[str, pa.Table]) -> pa.Table:
    """The index with each (Parquet file, row) replaced by the byte range of that row.

    Args:
        index: of a source in the Parquet layout.
        ranges: for each Parquet file, ``path``, ``offset`` and ``size`` of the image in each row.
    """
    counts = [len(table) for table in ranges.values()]
    first_rows = np.cumsum([0, *counts[:-1]])
    file = pc.index_in(index["path"], pa.array(list(ranges), pa.string())).to_numpy()
    row = index["offset"].to_numpy()
    assert np.all(row < np.array(counts)[file])
    image_ranges = pa.concat_tables(ranges.values()).take(pa.array(first_rows[file] + row))
    columns = [
        image_ranges[name] if name in _RANGES.names else index[name] for name in SCHEMA.names
    ]
    return pa.table(columns, schema=SCHEMA)


def read_image(path: str, row: int) -> bytes:
    """One image's bytes from its Parquet file; too slow for more than a few images.

    Raises:
        UserError: the file can't be read.
        FileNotFoundError: it only names the image, and there is no such file.
    """
    image = next(_read(path, start=row))
    if image is None:
        raise FileNotFoundError(f"{path}: row {row} names a file that does not exist")
    return bytes(image)


def find_local(parquet: str, name: str) -> storage.File | None:
    """The file of an image that a Parquet file only names; None if there is none.

    Args:
        parquet: path of the Parquet file.
        name: an absolute path, or one relative to the Parquet file's folder or the one above it.
    """
    folder = parquet.rpartition("/")[0]
    for base in (folder, folder.rpartition("/")[0]):
        path = name if storage.is_remote(name) else storage.join(base, name)
        with contextlib.suppress(OSError, UserError, ValueError):
            return storage.stat(path)
    return None


def _segments(images: Iterator[pa.Buffer | None]) -> Iterator[list[pa.Buffer | None]]:
    """The images of each segment."""
    segment: list[pa.Buffer | None] = []
    size = 0
    for image in images:
        segment.append(image)
        size += len(image or b"")
        if size >= SEGMENT_BYTES:
            yield segment
            segment, size = [], 0
    if segment:
        yield segment


def _read(path: str, start: int = 0) -> Iterator[pa.Buffer | None]:
    """The images' bytes, starting at a row; a row group is never in memory as a whole.

    None stands for an image whose file is missing.
    """
    try:
        with storage.open_input(path) as opened:
            file = pq.ParquetFile(
                opened, buffer_size=_BUFFER_BYTES, pre_buffer=False, page_checksum_verification=True
            )
            kind = file.schema_arrow.field("image").type
            is_struct = pa.types.is_struct(kind)
            is_named = is_struct and kind.get_field_index("path") >= 0
            groups = [file.metadata.row_group(n).num_rows for n in range(file.num_row_groups)]
            ends = np.cumsum(groups, dtype=np.int64)
            first = int(np.searchsorted(ends, start, side="right"))
            skip = start - (int(ends[first - 1]) if first else 0)
            for batch in file.iter_batches(
                _BATCH_ROWS,
                row_groups=range(first, len(groups)),
                columns=["image"] if is_named or not is_struct else ["image.bytes"],
                use_threads=False,
            ):
                images = batch.column("image")
                names = pc.struct_field(images, "path") if is_named else pa.nulls(len(images))
                if is_struct:
                    images = pc.struct_field(images, "bytes")
                for image, name in zip(images[skip:], names[skip:], strict=True):
                    if image.is_valid or not name.is_valid:
                        yield image.as_buffer() or pa.py_buffer(b"")
                    else:
                        yield _read_local(path, name.as_py())
                skip = max(0, skip - len(images))
    except (OSError, pa.ArrowException) as error:
        raise UserError(
            f"{path}: its images can't be read ({one_line(error)}); download it again"
        ) from error


def _read_local(parquet: str, name: str) -> pa.Buffer | None:
    file = find_local(parquet, name)
    return pa.py_buffer(storage.read_bytes(file.path)) if file else None


def _name(path: str) -> str:
    """A prefix for the names of a Parquet file's segments; it changes if the file is changed.

    Raises:
        UserError: the file is missing.
    """
    try:
        file = storage.stat(path)
    except FileNotFoundError as error:
        raise UserError(f"{path}: is missing; restore it") from error
    stem = posixpath.basename(path).removesuffix(".parquet")
    text = f"{path}\0{file.size}\0{file.modified_ns}"
    return f"{stem}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"


def _ranges_path(folder: str, name: str) -> str:
    return storage.join(folder, f"{name}.parquet")


def _read_ranges(path: str, folder: str) -> pa.Table:
    ranges_path = _ranges_path(folder, _name(path))
    if not storage.is_file(ranges_path):
        raise UserError(f"{path}: has changed during the run; give the same command again")
    with storage.open_input(ranges_path) as file:
        ranges = pq.read_table(file)
    paths = pc.binary_join_element_wise(folder, ranges["path"], "/")
    return ranges.set_column(0, _RANGES.field("path"), paths)
