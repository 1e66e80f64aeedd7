"""Tar archives, also nested ones, as lists of byte ranges.

An uncompressed tar stores a member's bytes unchanged, and so does a tar inside a tar: a member is
an offset and a size in the outermost file. So only headers are read, nothing is unpacked, and one
function reads an image from any kind of source.

A link, hard or symbolic, is the byte range of the file in the same archive that it leads to.

Members with a name of ``ignored`` are not listed but counted.

Headers are not trusted: only plain files and links are listed, nothing outside the archive is read,
and a member must end before its archive ends, so that a wrong size can't cause a read of more bytes
than the archive has.
"""

import posixpath
import tarfile
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import IO, NamedTuple, cast

import pyarrow as pa

from alexnet import storage
from alexnet.errors import UserError, one_line
from alexnet.sources.account import SAME_FILE
from alexnet.sources.content import HEAD_BYTES, explain_content
from alexnet.sources.ignored import ignoring_rule
from alexnet.sources.visible import SPECIAL

_BLOCK = tarfile.BLOCKSIZE

# A header, with a long name or extended attributes, is never longer.
_MAX_HEADER_BYTES = 2**20

# Inner archives are listed in parallel: in an object store each header costs a round trip.
_THREADS_LOCAL = 4
_THREADS_REMOTE = 32


NO_TARGET = -1
"""The size of a link that does not lead to a file in its archive."""


class Members(NamedTuple):
    """The files of an archive, by column: a million rows do not need a million objects."""

    names: list[str]
    offsets: list[int]
    sizes: list[int]
    """Bytes, or ``NO_TARGET``."""


class Listed(NamedTuple):
    """What is in one archive."""

    members: Members
    ignored: Counter[str]
    """Number of other members by the rule that ignores them; folders do not count."""


class Nested(NamedTuple):
    """What is in the inner archives of an archive."""

    members: dict[str, Members]
    """By the inner archive's name; offsets are in the outer archive."""
    ignored: Counter[str]
    """As in ``Listed``, of the outer and all inner archives."""


def list_members(path: str) -> Listed:
    """Files of an archive in its order; a name is the last part of the member's path.

    Raises:
        UserError: the archive is compressed, damaged or truncated, or contains a sparse file or
            one without a name.
        OSError: the file can't be read.
    """
    with storage.open_input(path) as file:
        return _list(path, _Range(file, 0, file.size()))


def list_nested(path: str) -> Nested:
    """Files of each inner archive of an archive.

    Raises:
        UserError: an archive is compressed, damaged or truncated, contains a sparse file or one
            without a name, two inner archives have the same name, or one is a link that leads to
            no file.
        OSError: the file can't be read.
    """
    count = _THREADS_REMOTE if storage.is_remote(path) else _THREADS_LOCAL
    with storage.open_input(path) as file, ThreadPoolExecutor(count) as threads:

        def list_inner(name: str, offset: int, size: int) -> Listed:
            if size == NO_TARGET:
                raise UserError(
                    f"{path}: {name} is a link to a file that the archive does not contain; "
                    "pack it with the files that links lead to"
                )
            return _list(f"{path}: {name}", _Range(file, offset, size))

        outer, ignored = _list(path, _Range(file, 0, file.size()))
        if len(set(outer.names)) < len(outer.names):
            repeated = next(name for name in outer.names if outer.names.count(name) > 1)
            raise UserError(f"{path}: contains {repeated} twice; remove one of them")
        members = {}
        for name, inner in zip(outer.names, threads.map(list_inner, *outer), strict=True):
            members[name] = inner.members
            ignored.update(inner.ignored)
        return Nested(members, ignored)


def list_range(file: pa.NativeFile, name: str, offset: int = 0, size: int | None = None) -> Listed:
    """Files of an archive that is a range of an open file; a name is the member's whole path.

    Args:
        file: seekable.
        name: of the archive, for messages.
        offset: of its first byte.
        size: bytes; by default all of the file.

    Raises:
        UserError: as ``list_members``.
        OSError: the file can't be read.
    """
    length = file.size() if size is None else size
    return _list(name, _Range(file, offset, length), whole_paths=True)


class _Range:
    """A range of a file with the methods of a file, from which ``tarfile`` reads headers.

    Reads stop at the end of the range. They do not use the file's own position, because threads
    share the file. They read one header ahead, because ``tarfile`` first reads the byte before each
    header.
    """

    def __init__(self, file: pa.NativeFile, start: int, size: int) -> None:
        self.size = size
        self.start = start
        self._file = file
        self._position = 0
        self._buffer = b""
        self._buffer_position = 0

    def tell(self) -> int:
        return self._position

    def seek(self, position: int) -> None:
        self._position = position

    def read(self, size: int) -> bytes:
        if size > _MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {size} bytes")
        size = min(size, self.size - self._position)
        if size <= 0:
            return b""
        begin = self._position - self._buffer_position
        if not 0 <= begin <= begin + size <= len(self._buffer):
            with_next_header = min(size + _BLOCK, self.size - self._position)
            self._buffer = self._file.read_at(with_next_header, self.start + self._position)
            self._buffer_position = self._position
            begin = 0
        data = self._buffer[begin : begin + size]
        self._position += len(data)
        return data


def _list(name: str, archive: _Range, *, whole_paths: bool = False) -> Listed:
    """The files of the archive in a range, with offsets in the whole file.

    Args:
        name: of the archive, for messages.
        archive: the range.
        whole_paths: whether names are the members' paths, or the last parts of these.
    """
    members, ignored = Members([], [], []), Counter[str]()
    positions: dict[str, int] = {}
    targets: dict[str, str] = {}
    try:
        for member in _walk(archive):
            path = posixpath.normpath(member.name.lstrip("/"))
            if rule := ignoring_rule([p for p in path.split("/") if p not in (".", "..")]):
                ignored[rule] += 1
                continue
            if not (member.isreg() or member.islnk() or member.issym()):
                ignored[SPECIAL] += 1
                continue
            if not member.isreg():
                target = _target(member)
                if target == path in positions:
                    # A file that is given to ``tar`` twice is stored as a link to itself.
                    ignored[SAME_FILE] += 1
                    continue
                targets[path] = target
            positions[path] = len(members.names)
            members.names.append(path if whole_paths else _last_part(member.name))
            members.offsets.append(archive.start + member.offset_data)
            members.sizes.append(member.size)
    except OSError:
        raise
    except Exception as error:  # tarfile raises many types of errors on a damaged header.
        archive.seek(0)
        if what := explain_content(archive.read(HEAD_BYTES)):
            raise UserError(f"{name}: is {what}") from error
        raise UserError(
            f"{name}: damaged or truncated archive ({one_line(error)}); compare its size and its "
            "md5 sum with the published ones and download it again if they differ"
        ) from error
    for path in targets:
        _follow(path, targets, positions, members)
    return Listed(members, ignored)


def _target(member: tarfile.TarInfo) -> str:
    """The path in the archive that a link leads to; empty if it has none."""
    if not member.linkname:
        return ""
    if member.islnk():
        return posixpath.normpath(member.linkname.lstrip("/"))
    return posixpath.normpath(posixpath.join(posixpath.dirname(member.name), member.linkname))


def _follow(
    path: str, targets: Mapping[str, str], positions: Mapping[str, int], members: Members
) -> None:
    """Replace a link's byte range by that of the file that it leads to, perhaps over other links.

    Args:
        path: of the link.
        targets: of all links, by path.
        positions: of all files and links in ``members``, by path.
        members: of the archive.
    """
    end, passed = targets[path], {path}
    while end in targets and end not in passed:
        passed.add(end)
        end = targets[end]
    position = positions[path]
    is_file = end in positions and end not in targets
    members.offsets[position] = members.offsets[positions[end]] if is_file else 0
    members.sizes[position] = members.sizes[positions[end]] if is_file else NO_TARGET


def _last_part(name: str) -> str:
    """A member's name without its folders, which are ignored, also ``../``."""
    last = name.rpartition("/")[2]
    if last in ("", ".", ".."):
        raise tarfile.ReadError(f"{name!r} is not the name of a file")
    return last


def _walk(source: _Range) -> Iterator[tarfile.TarInfo]:
    """All members but folders; ``tarfile`` would not notice that its end is missing.

    Raises:
        tarfile.TarError: the archive is damaged or truncated or contains a sparse file.
    """
    # Bytes of names that are not UTF-8 become backslash escapes, which, unlike surrogates, can be
    # stored.
    file = cast(IO[bytes], source)
    with tarfile.open(fileobj=file, mode="r:", errors="backslashreplace") as archive:
        while (member := archive.next()) is not None:
            # Each header is needed once; without this tarfile keeps a kilobyte per image.
            archive.members.clear()  # type: ignore[attr-defined]
            if member.issparse():
                raise tarfile.ReadError(f"{member.name} is a sparse file, which is not supported")
            if member.size < 0:
                raise tarfile.ReadError(f"{member.name} has a negative size")
            if member.isdir():
                continue
            if member.isreg() and member.offset_data + member.size > source.size:
                raise tarfile.ReadError(f"truncated archive: {member.name} ends after the archive")
            yield member
        source.seek(archive.offset)
        end = source.read(_BLOCK)
    if len(end) < _BLOCK:
        raise tarfile.ReadError("truncated archive: no end mark")
    if end.strip(b"\0"):
        raise tarfile.ReadError(f"damaged header at byte {archive.offset}")
