"""Files on local disk, ``s3://`` and ``gs://``, through pyarrow's file systems.

Every path here is a string: an absolute local path or a URI (``object_store`` describes the
connection). Local paths that are not UTF-8 have the form of ``names.path_text``. Writes are atomic:
a local file is written under a temporary name and renamed, an object store publishes an object when
its stream closes.
"""

import contextlib
import hashlib
import io
import json
import os
import posixpath
import re
import uuid
from collections.abc import Iterator
from stat import S_ISREG
from typing import IO, Any, NamedTuple, cast

import pyarrow as pa
from pyarrow import fs

from alexnet.errors import UnwritableFolderError, UserError, one_line
from alexnet.storage import object_store
from alexnet.storage.names import path_bytes, path_text

_HASH_CHUNK_BYTES = 2**23
_SURROGATE = re.compile("[\ud800-\udfff]")
"""How Python shows a byte that is not UTF-8."""


class File(NamedTuple):
    """One file: its path or URI, its size in bytes and its time of modification."""

    path: str
    size: int
    modified_ns: int


def is_remote(path: str) -> bool:
    """Whether the path is a URI of an object store."""
    return "://" in path and not path.startswith("file://")


def absolute(path: str | os.PathLike[str]) -> str:
    r"""The path, independent of the working directory; a URI loses only slashes at its end.

    A local path may be given as the operating system gives it or as text, so that what is printed
    can be given again. ``a\xe9`` is a name with a backslash if it exists, otherwise the text of one
    that is not UTF-8.

    Raises:
        UserError: a URI contains a query, a user, a password or a port.
    """
    text = os.fspath(path)
    if is_remote(text):
        return object_store.check_uri(text)
    local = os.path.abspath(os.path.expanduser(text.removeprefix("file://")))
    is_given_as_text = not _SURROGATE.search(local) and not os.path.lexists(local)
    return local if is_given_as_text else path_text(local)


def join(base: str, *parts: str) -> str:
    """A path or URI below another one."""
    return posixpath.join(base, *parts)


def locate(path: str) -> tuple[fs.FileSystem, str | bytes]:
    """The file system of a path or URI, and the path inside that file system.

    A local path is bytes there if they are not UTF-8, which pyarrow and Python take too.

    Raises:
        UserError: the URI's scheme is unknown or its store can't be reached.
    """
    if not is_remote(path):
        return fs.LocalFileSystem(), local_path(path)
    try:
        return object_store.open_store(path)
    except (ValueError, OSError) as error:
        raise UserError(
            f"{path}: can't be opened ({one_line(error)}); use a local path, s3:// or gs://, with "
            "credentials in the environment"
        ) from error


def local_path(path: str) -> str | bytes:
    """A local path or URI as Python's own functions take it."""
    inner = path_bytes(path.removeprefix("file://"))
    try:
        return inner.decode()
    except UnicodeDecodeError:
        return inner


def exists(path: str) -> bool:
    """Whether the path is a file or a folder."""
    return bool(_info(path).type != fs.FileType.NotFound)


def is_file(path: str) -> bool:
    """Whether the path is a file."""
    return bool(_info(path).type == fs.FileType.File)


def is_folder(path: str) -> bool:
    """Whether the path is a folder."""
    return bool(_info(path).type == fs.FileType.Directory)


def size(path: str) -> int:
    """Bytes in a file; -1 if there is no such file."""
    info = _info(path)
    return info.size if info.type == fs.FileType.File else -1


def stat(path: str) -> File:
    """The file's size and time of modification.

    Raises:
        FileNotFoundError: there is no such file.
    """
    info = _info(path)
    if info.type != fs.FileType.File:
        raise FileNotFoundError(path)
    return File(path, info.size, info.mtime_ns or 0)


def _info(path: str) -> fs.FileInfo:
    """Type, size and time of modification of a path; every stage checks its inputs with it first.

    Raises:
        UserError: an object store does not answer or denies access.
        OSError: the same on a local disk.
    """
    filesystem, inner = locate(path)
    try:
        return filesystem.get_file_info(inner)
    except OSError as error:
        if not is_remote(path):
            raise
        raise UserError(
            f"{path}: can't be reached ({one_line(error)}); check the name, the credentials and "
            "the network"
        ) from error


def list_files(folder: str, *, recursive: bool = True) -> list[File]:
    """Every file below a folder, sorted by path; each path starts with ``folder`` as given."""
    if not is_remote(folder):
        return sorted(_list_local(folder, recursive=recursive))
    filesystem, inner = locate(folder)
    selector = fs.FileSelector(inner, allow_not_found=True, recursive=recursive)
    files = [
        File(join(folder, info.path[len(inner) + 1 :]), info.size, info.mtime_ns or 0)
        for info in filesystem.get_file_info(selector)
        if info.type == fs.FileType.File
    ]
    return sorted(files)


def _scan(folder: str) -> list[os.DirEntry[str]]:
    """The entries of a local folder; none if there is no such folder."""
    try:
        with os.scandir(os.fsdecode(local_path(folder))) as entries:
            return list(entries)
    except FileNotFoundError:
        return []


def _list_local(folder: str, *, recursive: bool) -> Iterator[File]:
    """Every file below a local folder; pyarrow can't list names that are not UTF-8."""
    for entry in _scan(folder):
        path = join(folder, path_text(entry.name))
        try:
            info = entry.stat()
        except OSError:  # A link that leads to nothing.
            continue
        if S_ISREG(info.st_mode):
            yield File(path, info.st_size, info.st_mtime_ns)
        elif recursive and entry.is_dir():
            yield from _list_local(path, recursive=True)


def list_folders(folder: str) -> list[str]:
    """Names of the folders directly below a folder, sorted."""
    if not is_remote(folder):
        return sorted(path_text(entry.name) for entry in _scan(folder) if entry.is_dir())
    filesystem, inner = locate(folder)
    # Google's store has no folders; they appear only in the names of the files below them.
    recursive = filesystem.type_name == "gcs"
    selector = fs.FileSelector(inner, allow_not_found=True, recursive=recursive)
    names = set()
    for info in filesystem.get_file_info(selector):
        name, slash, _ = info.path[len(inner) + 1 :].partition("/")
        if slash or info.type == fs.FileType.Directory:
            names.add(name)
    return sorted(names)


def make_folder(path: str) -> None:
    """Create a folder and its parents, and check that files can be written to it.

    Raises:
        UnwritableFolderError: the folder can't be created or written to.
    """
    probe = join(path, f".write-test-{uuid.uuid4().hex}")
    try:
        write_bytes(probe, b"")
        filesystem, inner = locate(probe)
        filesystem.delete_file(inner)
    except OSError as error:
        raise UnwritableFolderError(
            f"{path}: can't be written ({error.strerror or one_line(error)})"
        ) from error


def open_input(path: str) -> pa.NativeFile:
    """Open a file for reading at any position."""
    filesystem, inner = locate(path)
    return filesystem.open_input_file(inner)


def read_bytes(path: str) -> bytes:
    """A file's content."""
    with open_input(path) as file:
        return cast(bytes, file.read())


def sha256(path: str) -> str:
    """sha256 of a file's bytes, 64 hexadecimal digits.

    Raises:
        OSError: the file is missing or can't be read.
    """
    digest = hashlib.sha256()
    with open_input(path) as file:
        while chunk := file.read(_HASH_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def read_json(path: str) -> Any:
    """A JSON file's value."""
    return json.loads(read_bytes(path))


@contextlib.contextmanager
def atomic_output(path: str) -> Iterator[IO[bytes]]:
    """A file to write that gets its name only if the block ends without an exception."""
    filesystem, inner = locate(path)
    if is_remote(path):
        # The store publishes an object when its stream closes, so nothing is sent before the block
        # has ended.
        buffer = io.BytesIO()
        yield buffer
        # By default pyarrow would compress a file named .gz a second time.
        with filesystem.open_output_stream(inner, compression=None) as stream:
            stream.write(buffer.getbuffer())
        return
    final = os.fsdecode(inner)
    os.makedirs(os.path.dirname(final), exist_ok=True)
    temporary = f"{final}.{uuid.uuid4().hex}.tmp"
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, final)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.remove(temporary)


def write_bytes(path: str, data: bytes) -> None:
    """Write a file, atomically."""
    with atomic_output(path) as file:
        file.write(data)


def write_json(path: str, value: Any) -> None:
    """Write a value as indented JSON, atomically; keys keep their order."""
    write_bytes(path, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode())


def delete_file(path: str) -> None:
    """Remove a file."""
    filesystem, inner = locate(path)
    filesystem.delete_file(inner)


def delete_folder(path: str) -> None:
    """Remove a folder and its content; does nothing if there is no such folder."""
    filesystem, inner = locate(path)
    if filesystem.get_file_info(inner).type == fs.FileType.Directory:
        # In Google's store a folder no longer exists once its files are deleted.
        with contextlib.suppress(FileNotFoundError):
            filesystem.delete_dir(inner)
