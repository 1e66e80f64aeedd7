"""Tar archives as lists of byte ranges, nested archives included.

A member of an uncompressed tar lies there as it is, and so does a member of a tar inside a tar:
its place is an offset and a size in the outermost file. So an archive is listed by its headers
alone, nothing is unpacked, and one function reads an image out of any kind of source.

Headers are not trusted: only plain files are listed, and a member has to end before its archive
does, so that a size can't ask for more memory than there are bytes.
"""

import tarfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import IO, NamedTuple, cast

import pyarrow as pa

from alexnet import storage
from alexnet.errors import UserError, one_line

_BLOCK = tarfile.BLOCKSIZE

# A header and what belongs to it (a long name, extended attributes) is never this long.
_LONGEST_HEADER = 2**20

# Inner archives are listed side by side: in an object store each header costs a round trip.
_THREADS_LOCAL = 4
_THREADS_REMOTE = 32


class Members(NamedTuple):
    """The plain files of an archive, column by column: a million rows cost no million objects."""

    names: list[str]
    offsets: list[int]
    sizes: list[int]


def list_members(path: str) -> Members:
    """Files of a flat archive, by the last part of their names, in the archive's order.

    Raises:
        UserError: the archive is compressed, damaged or truncated, or holds a sparse file or one
            without a name.
        OSError: the file can't be read.
    """
    with storage.open_input(path) as file:
        return _list(path, _Range(file, 0, file.size()))


def list_nested(path: str) -> dict[str, Members]:
    """Files of an archive of archives, by the inner archive's name, with offsets in the outer one.

    Raises:
        UserError: an archive is compressed, damaged or truncated, holds a sparse file or one
            without a name, or comes twice.
        OSError: the file can't be read.
    """
    count = _THREADS_REMOTE if storage.is_remote(path) else _THREADS_LOCAL
    with storage.open_input(path) as file, ThreadPoolExecutor(count) as threads:

        def list_inner(name: str, offset: int, size: int) -> Members:
            return _list(f"{path}: {name}", _Range(file, offset, size))

        outer = _list(path, _Range(file, 0, file.size()))
        if len(set(outer.names)) < len(outer.names):
            twice = next(name for name in outer.names if outer.names.count(name) > 1)
            raise UserError(f"{path}: holds {twice} twice; remove one of them")
        return dict(zip(outer.names, threads.map(list_inner, *outer), strict=True))


class _Range:
    """A range of a file as a file of its own, which is what ``tarfile`` reads headers from.

    Reads stop at the end of the range, take no notice of the file's own position (threads share
    it), and fetch one header ahead: ``tarfile`` first reads the byte before each header.
    """

    def __init__(self, file: pa.NativeFile, start: int, size: int) -> None:
        self.size = size
        self._file = file
        self._start = start
        self._position = 0
        self._fetched = b""
        self._fetched_at = 0

    def tell(self) -> int:
        return self._position

    def seek(self, position: int) -> None:
        self._position = position

    def read(self, size: int) -> bytes:
        if size > _LONGEST_HEADER:
            raise tarfile.ReadError(f"a header of {size} bytes")
        size = min(size, self.size - self._position)
        if size <= 0:
            return b""
        begin = self._position - self._fetched_at
        if not 0 <= begin <= begin + size <= len(self._fetched):
            ahead = min(size + _BLOCK, self.size - self._position)
            self._fetched = self._file.read_at(ahead, self._start + self._position)
            self._fetched_at = self._position
            begin = 0
        data = self._fetched[begin : begin + size]
        self._position += len(data)
        return data


def _list(place: str, source: _Range) -> Members:
    """The files of the archive in a range, with offsets in the whole file."""
    members = Members([], [], [])
    try:
        for member in _walk(source):
            members.names.append(_last_part(member.name))
            members.offsets.append(source._start + member.offset_data)
            members.sizes.append(member.size)
    except OSError:
        raise
    except Exception as error:  # On a damaged header tarfile raises almost anything.
        raise UserError(
            f"{place}: damaged, truncated or compressed archive ({one_line(error)}); "
            "get it again, as an uncompressed tar"
        ) from error
    return members


def _last_part(name: str) -> str:
    """A member's name without its folders, which have no meaning here, not even ``../``."""
    last = name.rpartition("/")[2]
    if last in ("", ".", ".."):
        raise tarfile.ReadError(f"{name!r} is no name of a file")
    return last


def _walk(source: _Range) -> Iterator[tarfile.TarInfo]:
    """The plain files of an archive; unlike ``tarfile``, notices a member or an end that is gone.

    Raises:
        tarfile.TarError: something is wrong with the archive.
    """
    # Names that are not UTF-8 stay readable, and unlike surrogates they can be stored.
    file = cast(IO[bytes], source)
    with tarfile.open(fileobj=file, mode="r:", errors="backslashreplace") as archive:
        while (member := archive.next()) is not None:
            # A listing needs each header once; keeping them would cost a kilobyte per image.
            archive.members.clear()  # type: ignore[attr-defined]
            if member.issparse():
                raise tarfile.ReadError(f"{member.name} is a sparse file, which is not supported")
            if member.size < 0:
                raise tarfile.ReadError(f"{member.name} has a negative size")
            if not member.isreg():
                continue
            if member.offset_data + member.size > source.size:
                raise tarfile.ReadError(f"truncated archive: {member.name} goes on past its end")
            yield member
        source.seek(archive.offset)
        end = source.read(_BLOCK)
    if len(end) < _BLOCK:
        raise tarfile.ReadError("truncated archive: no end mark")
    if end.strip(b"\0"):
        raise tarfile.ReadError(f"damaged header at byte {archive.offset}")
