"""Which files below a folder count as images: all but those with a name of ``ignored``.

A link that leads to nothing counts: it is listed with the size ``storage.NO_FILE``, and reading it
raises ``FileNotFoundError``.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from alexnet import storage
from alexnet.sources.ignored import ignoring_rule

LOOP, SPECIAL = "link to a folder above it", "pipe, socket or device"
"""Rules that ignore entries of other kinds than files."""


@dataclass(frozen=True, slots=True)
class Listing:
    """What is below a folder."""

    entries: list[storage.Entry]
    """Visible files and links that lead to nothing, sorted by path."""
    folders: list[str]
    """Names of visible folders directly below, sorted; empty if their files are listed here."""
    ignored: Counter[str]
    """Number of ignored files by rule, those in ignored folders included."""


def list_folder(folder: str, *, recursive: bool = True) -> Listing:
    """The visible files of a folder and the number of the ignored ones.

    Args:
        folder: path or URI; its own name does not matter.
        recursive: whether files at any depth are listed, or only those directly in the folder.

    Raises:
        OSError: the folder or a visible folder in it can't be listed.
    """
    listing = Listing([], [], Counter())
    _sort_out(folder, storage.walk(folder, recursive=recursive), listing)
    if recursive:
        return listing
    for name in storage.list_folders(folder):
        if rule := ignoring_rule([name]):
            listing.ignored.update({rule: len(_walk_ignored(storage.join(folder, name)))})
        else:
            listing.folders.append(name)
    return listing


def _sort_out(folder: str, entries: Sequence[storage.Entry], listing: Listing) -> None:
    start = len(folder.rstrip("/")) + 1
    for entry in entries:
        rule = ignoring_rule(entry.file.path[start:].split("/"))
        if not rule and entry.kind == "unreadable":
            raise PermissionError(f"{entry.file.path}: permission denied")
        if not rule and entry.kind in ("loop", "special"):
            rule = LOOP if entry.kind == "loop" else SPECIAL
        if rule:
            listing.ignored[rule] += 1
        else:
            listing.entries.append(entry)


def _walk_ignored(folder: str) -> list[storage.Entry]:
    """The files of an ignored folder, as far as they can be listed."""
    try:
        return storage.walk(folder)
    except PermissionError:  # ``lost+found`` belongs to root.
        return []


def visible_files(folder: str, *, recursive: bool = True) -> list[storage.File]:
    """The files of a folder that are not ignored, and links that lead to nothing, sorted by path.

    Args:
        folder: path or URI; its own name does not matter.
        recursive: whether files at any depth are listed.

    Raises:
        OSError: a folder can't be listed.
    """
    return [entry.file for entry in list_folder(folder, recursive=recursive).entries]
