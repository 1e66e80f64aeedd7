"""The visible files below a folder, one by one, sorted, in memory that does not grow with them.

Links to files and folders outside are followed; a link to something that is listed at its own place
is not, and neither is a folder that was entered before: so loops end, and a caller that drops
repeated ``Found.real`` reads each file once. Object stores have no links.
"""

import contextlib
import heapq
import os
import stat
import tempfile
from collections import Counter
from collections.abc import Iterator
from typing import IO, NamedTuple

from alexnet import storage
from alexnet.errors import UserError
from alexnet.sources.account import SAME_FILE
from alexnet.sources.ignored import ignoring_rule
from alexnet.sources.visible import SPECIAL, list_folder
from alexnet.storage.names import path_bytes, path_text

RUN_NAMES = 200_000
"""Names of one folder that are sorted in memory; more are sorted in temporary files."""

UNKNOWN = -1
"""The size of what can't be read."""

_FILE, _FOLDER, _LINK = b"f", b"d", b"l"
_NOT_A_FILE = "unreadable: not a file"


class Found(NamedTuple):
    """A file, or a folder or link that can't be read."""

    path: str
    """Below the listed folder; text of ``storage.names``."""
    real: str
    """The same file without links."""
    size: int
    """Bytes, or ``UNKNOWN``."""
    modified_ns: int
    problem: str = ""
    """Why it can't be read, empty if it can as far as is known."""


def walk(root: str, ignored: Counter[str]) -> Iterator[Found]:
    """The visible files below a folder.

    A folder that may not be read and a link that leads nowhere are found with their problem.

    Args:
        root: path or URI.
        ignored: the number of files that are ignored is added, by the rules of ``ignored``, by
            ``SPECIAL`` for pipes, sockets and devices, and by ``SAME_FILE`` for links.

    Raises:
        UserError: the folder itself can't be listed, or one can't be for a reason other than its
            permissions.
    """
    if storage.is_remote(root):
        return _walk_store(root, ignored)
    return _walk_local(path_bytes(root), ignored)


def find_file(path: str) -> Found:
    """One local file or object by its path; it may be missing."""
    if storage.is_remote(path):
        try:
            file = storage.stat(path)
        except FileNotFoundError:
            return Found(path, path, UNKNOWN, 0, "unreadable: no such file")
        return _of_object(file)
    if "\0" in path:  # No file has a null character in its name.
        return Found(path, path, UNKNOWN, 0, "unreadable: no such file")
    local = path_bytes(path)
    return _stat(local, os.path.realpath(local))


def _stat(path: bytes, real: bytes) -> Found:
    names = path_text(path), path_text(real)
    try:
        status = os.stat(path)
    except OSError as error:
        return Found(*names, UNKNOWN, 0, f"unreadable: {error.strerror}")
    if not stat.S_ISREG(status.st_mode):
        return Found(*names, UNKNOWN, 0, _NOT_A_FILE)
    return Found(*names, status.st_size, status.st_mtime_ns)


def _walk_local(root: bytes, ignored: Counter[str]) -> Iterator[Found]:
    real_root = os.path.realpath(root)
    entered = {real_root}
    open_folders = [(root, real_root, _sorted_names(root, ignored))]
    while open_folders:
        folder, real_folder, names = open_folders[-1]
        try:
            name, kind = next(names, (b"", b""))
        except OSError as error:
            if folder == root or not isinstance(error, PermissionError):
                raise UserError(
                    f"{path_text(folder)}: can't be listed ({error.strerror}); make it readable"
                ) from error
            problem = "unreadable: Permission denied (folder)"
            yield Found(path_text(folder), path_text(real_folder), UNKNOWN, 0, problem)
            name = b""
        if not name:
            open_folders.pop()
            continue
        path, real = os.path.join(folder, name), os.path.join(real_folder, name)
        if kind == _LINK:
            real = os.path.realpath(path)
            if os.path.exists(real) and any(_is_listed(real, top) for top in entered):
                ignored[SAME_FILE] += 1
                continue
            if os.path.isdir(real):
                entered.add(real)
                kind = _FOLDER
        if kind == _FOLDER:
            open_folders.append((path, real, _sorted_names(path, ignored)))
        elif (found := _stat(path, real)).problem == _NOT_A_FILE:
            ignored[SPECIAL] += 1
        else:
            yield found


def _is_listed(real: bytes, top: bytes) -> bool:
    """Whether a walk of ``top`` finds this file or folder, or everything in it."""
    inside = real.startswith(top.rstrip(b"/") + b"/")
    return real == top or (inside and _rule(real[len(top) :].lstrip(b"/")) is None)


def _rule(path: bytes) -> str | None:
    """The rule that ignores a path below the listed folder."""
    return ignoring_rule(path_text(path).split("/"))


def _sorted_names(folder: bytes, ignored: Counter[str]) -> Iterator[tuple[bytes, bytes]]:
    """Name and kind of the visible entries of a local folder, sorted."""
    # A name contains no null byte, which sorts before all others.
    lines: list[bytes] = []
    with contextlib.ExitStack() as files:
        runs: list[IO[bytes]] = []
        with os.scandir(folder) as entries:
            for entry in entries:
                if rule := _rule(entry.name):
                    ignored[rule] += _count_files(entry)
                    continue
                if not (kind := _kind(entry)):
                    ignored[SPECIAL] += 1
                    continue
                lines.append(entry.name + b"\0" + kind)
                if len(lines) == RUN_NAMES:
                    file = files.enter_context(tempfile.TemporaryFile())
                    runs.append(_write_run(lines, file))
                    lines = []
        lines.sort()
        for line in heapq.merge(lines, *map(_read_run, runs)) if runs else lines:
            name, _, kind = line.partition(b"\0")
            yield name, kind


def _count_files(entry: os.DirEntry[bytes]) -> int:
    if not entry.is_dir(follow_symlinks=False):
        return 1
    return sum(len(files) for _, _, files in os.walk(entry.path))


def _kind(entry: os.DirEntry[bytes]) -> bytes:
    if entry.is_symlink():
        return _LINK
    if entry.is_dir(follow_symlinks=False):
        return _FOLDER
    return _FILE if entry.is_file(follow_symlinks=False) else b""


def _write_run(lines: list[bytes], file: IO[bytes]) -> IO[bytes]:
    """Lines, sorted, in a file; a line break in a name is a slash, which no name has."""
    file.writelines(line.replace(b"\n", b"/") + b"\n" for line in sorted(lines))
    file.seek(0)
    return file


def _read_run(file: IO[bytes]) -> Iterator[bytes]:
    for line in file:
        yield line[:-1].replace(b"/", b"\n")


def _walk_store(root: str, ignored: Counter[str]) -> Iterator[Found]:
    if storage.locate(root)[0].type_name == "gcs":
        # Google's store has no folders: a folder's names are found only by listing all below it.
        listing = list_folder(root)
        ignored.update(listing.ignored)
        yield from (_of_object(entry.file) for entry in listing.entries)
        return
    files = {file.path[len(root) + 1 :]: file for file in storage.list_files(root, recursive=False)}
    for name in sorted({*files, *storage.list_folders(root)}):
        path = storage.join(root, name)
        if rule := ignoring_rule([name]):
            ignored[rule] += 1 if name in files else len(storage.list_files(path))
        elif name in files:
            yield _of_object(files[name])
        else:
            yield from _walk_store(path, ignored)


def _of_object(file: storage.File) -> Found:
    return Found(file.path, file.path, file.size, file.modified_ns)
