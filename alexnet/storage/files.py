"""Files on local disk, ``s3://`` and ``gs://``, through pyarrow's file systems.

A place is a string: an absolute local path or a URI; ``object_store`` says how its store is
reached. Everything written here appears whole or not at all: local files are renamed into place,
object stores publish an object when it closes.
"""

import contextlib
import hashlib
import io
import json
import os
import posixpath
import uuid
from collections.abc import Iterator
from typing import IO, Any, NamedTuple, cast

import pyarrow as pa
from pyarrow import fs

from alexnet.errors import UserError, one_line
from alexnet.storage import object_store

_HASHED_AT_ONCE = 2**23


class File(NamedTuple):
    """One file: its place, its size in bytes and when it was last changed."""

    path: str
    size: int
    modified_ns: int


def is_remote(path: str) -> bool:
    """Whether the place is a URI of an object store rather than a local path."""
    return "://" in path and not path.startswith("file://")


def absolute(path: str | os.PathLike[str]) -> str:
    """The place independent of the working directory; URIs stay as they are.

    Raises:
        UserError: a URI holds a query or a password.
    """
    text = os.fspath(path)
    if is_remote(text):
        return object_store.check(text)
    return os.path.abspath(os.path.expanduser(text.removeprefix("file://")))


def join(base: str, *parts: str) -> str:
    """A place below another one."""
    return posixpath.join(base, *parts)


def locate(path: str) -> tuple[fs.FileSystem, str]:
    """The file system that holds a place, and the place's path in it.

    Raises:
        UserError: the URI's scheme is unknown or its store can't be reached.
    """
    if not is_remote(path):
        return fs.LocalFileSystem(), path.removeprefix("file://")
    try:
        return object_store.open_store(path)
    except (ValueError, OSError) as error:
        raise UserError(
            f"{path}: not a place that can be opened ({one_line(error)}); use a local path, "
            "s3:// or gs://, with its credentials in the environment"
        ) from error


def exists(path: str) -> bool:
    """Whether a file or a folder lies there."""
    return bool(_info(path).type != fs.FileType.NotFound)


def is_file(path: str) -> bool:
    """Whether a file lies there."""
    return bool(_info(path).type == fs.FileType.File)


def is_folder(path: str) -> bool:
    """Whether a folder lies there."""
    return bool(_info(path).type == fs.FileType.Directory)


def size(path: str) -> int:
    """Bytes in a file; -1 when there is none."""
    info = _info(path)
    return info.size if info.type == fs.FileType.File else -1


def stat(path: str) -> File:
    """The file's size and time of change.

    Raises:
        FileNotFoundError: no file lies there.
    """
    info = _info(path)
    if info.type != fs.FileType.File:
        raise FileNotFoundError(path)
    return File(path, info.size, info.mtime_ns or 0)


def _info(path: str) -> fs.FileInfo:
    """What lies at a place: every stage asks this of its inputs first.

    Raises:
        UserError: an object store does not answer or refuses to tell.
        OSError: a local disk does.
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
    """Every file below a folder, sorted by path; places are given in the folder's own form."""
    filesystem, inner = locate(folder)
    selector = fs.FileSelector(inner, allow_not_found=True, recursive=recursive)
    root = inner.rstrip("/")
    found = [
        File(join(folder, info.path[len(root) + 1 :]), info.size, info.mtime_ns or 0)
        for info in filesystem.get_file_info(selector)
        if info.type == fs.FileType.File
    ]
    return sorted(found)


def list_folders(folder: str) -> list[str]:
    """Names of the folders directly below a folder, sorted."""
    filesystem, inner = locate(folder)
    # Google's store knows no folders: they show in the names of the files below them.
    deep = filesystem.type_name == "gcs"
    selector = fs.FileSelector(inner, allow_not_found=True, recursive=deep)
    found = set()
    for info in filesystem.get_file_info(selector):
        name, slash, _ = info.path[len(inner.rstrip("/")) + 1 :].partition("/")
        if slash or info.type == fs.FileType.Directory:
            found.add(name)
    return sorted(found)


def make_folder(path: str) -> None:
    """Create a folder and its parents, and find out now whether it can be written to.

    Raises:
        UserError: the folder can't be made or written to.
    """
    probe = join(path, f".write-test-{uuid.uuid4().hex}")
    try:
        write_bytes(probe, b"")
        filesystem, inner = locate(probe)
        filesystem.delete_file(inner)
    except OSError as error:
        raise UserError(
            f"{path}: can't be written ({error.strerror or one_line(error)}); choose another "
            "--workdir"
        ) from error


def open_input(path: str) -> pa.NativeFile:
    """A file open for reading at any position."""
    filesystem, inner = locate(path)
    return filesystem.open_input_file(inner)


def read_bytes(path: str) -> bytes:
    """A whole file."""
    with open_input(path) as file:
        return cast(bytes, file.read())


def sha256(path: str) -> str:
    """Of a file's bytes, 64 hexadecimal digits.

    Raises:
        OSError: the file is missing or can't be read.
    """
    digest = hashlib.sha256()
    with open_input(path) as file:
        while piece := file.read(_HASHED_AT_ONCE):
            digest.update(piece)
    return digest.hexdigest()


def read_json(path: str) -> Any:
    """A JSON file's value."""
    return json.loads(read_bytes(path))


@contextlib.contextmanager
def atomic_output(path: str) -> Iterator[IO[bytes]]:
    """A file to write that appears under its name only if the block ends without an exception."""
    filesystem, inner = locate(path)
    if is_remote(path):
        # An object appears when its stream is closed, so nothing is sent before the block ends.
        buffer = io.BytesIO()
        yield buffer
        # By default pyarrow would compress what is named .gz once more.
        with filesystem.open_output_stream(inner, compression=None) as stream:
            stream.write(buffer.getbuffer())
        return
    os.makedirs(os.path.dirname(inner), exist_ok=True)
    temporary = f"{inner}.{uuid.uuid4().hex}.tmp"
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, inner)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.remove(temporary)


def write_bytes(path: str, data: bytes) -> None:
    """Write a whole file at once, atomically."""
    with atomic_output(path) as file:
        file.write(data)


def write_json(path: str, value: Any) -> None:
    """Write a value as readable JSON, atomically; keys keep their order."""
    write_bytes(path, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode())


def delete_file(path: str) -> None:
    """Remove a file."""
    filesystem, inner = locate(path)
    filesystem.delete_file(inner)


def delete_folder(path: str) -> None:
    """Remove a folder and all that is in it; nothing happens when there is none."""
    filesystem, inner = locate(path)
    if filesystem.get_file_info(inner).type == fs.FileType.Directory:
        # In Google's store nothing of a folder is left once its files are gone.
        with contextlib.suppress(FileNotFoundError):
            filesystem.delete_dir(inner)
