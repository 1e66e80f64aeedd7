"""Everything below a folder, also what is no file: links that lead to nothing, pipes, sockets.

``files.list_files`` lists what can be read. This lists what a user sees, so that nothing in a
folder of images is passed over.
"""

import os
import stat
from typing import Literal, NamedTuple

from alexnet.storage.files import File, is_remote, list_files, locate
from alexnet.storage.names import path_text

Kind = Literal["file", "dangling link", "loop", "special", "unreadable"]
"""A file; a link to something that does not exist; a link to a folder that contains it; a pipe, a
socket or a device; a folder that can't be listed."""

NO_FILE = -1
"""The size of an entry that is not a file."""


class Entry(NamedTuple):
    """One name below a folder that is not a folder."""

    file: File
    """``size`` is ``NO_FILE`` unless ``kind`` is ``file``."""
    kind: Kind = "file"
    inode: tuple[int, int] | None = None
    """Device and number of the file itself, on local disks."""
    is_linked: bool = False
    """Whether it is reached by a symbolic link, so that another name may lead to the same file."""


def walk(folder: str, *, recursive: bool = True) -> list[Entry]:
    """All entries below a folder, sorted by path; links to folders are followed.

    Args:
        folder: path or URI; each entry's path starts with it as given. It need not exist.
        recursive: whether entries in its subfolders are listed.

    Raises:
        OSError: the folder itself can't be listed.
    """
    if is_remote(folder):
        return [Entry(file) for file in list_files(folder, recursive=recursive)]
    if not os.path.isdir(locate(folder)[1]):
        return []
    entries: list[Entry] = []
    _walk(folder, entries, recursive=recursive, linked=False, above=frozenset())
    return sorted(entries)


def _walk(
    folder: str,
    entries: list[Entry],
    *,
    recursive: bool,
    linked: bool,
    above: frozenset[tuple[int, int]],
) -> None:
    """Append the entries of a folder.

    Args:
        folder: its path.
        entries: the list.
        recursive: whether to descend.
        linked: whether a link has led here.
        above: device and number of each folder above.
    """
    local = os.fsdecode(locate(folder)[1])
    info = os.stat(local)
    inside = above | {(info.st_dev, info.st_ino)}
    with os.scandir(local) as children:
        for child in children:
            path, is_link = f"{folder}/{path_text(child.name)}", child.is_symlink()
            try:
                info = child.stat()
            except OSError:
                info = child.stat(follow_symlinks=False)
                entries.append(Entry(File(path, NO_FILE, info.st_mtime_ns), "dangling link"))
                continue
            inode = info.st_dev, info.st_ino
            no_file = File(path, NO_FILE, info.st_mtime_ns)
            if stat.S_ISREG(info.st_mode):
                file = File(path, info.st_size, info.st_mtime_ns)
                entries.append(Entry(file, "file", inode, linked or is_link))
            elif not stat.S_ISDIR(info.st_mode):
                entries.append(Entry(no_file, "special"))
            elif inode in inside:
                entries.append(Entry(no_file, "loop"))
            elif recursive:
                try:
                    _walk(path, entries, recursive=True, linked=linked or is_link, above=inside)
                except PermissionError:
                    entries.append(Entry(no_file, "unreadable"))
