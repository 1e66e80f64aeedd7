"""Images that are single files, each real file once, by whatever symbolic links it is reached.

Two hard links are two files, as they are in archives.
"""

from collections.abc import Iterable, Sequence, Set
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from alexnet import storage
from alexnet.sources.account import CONFLICT, SAME_FILE, Account, why_unused
from alexnet.sources.index import Part, part_of_files


class FilePart(NamedTuple):
    """Rows of one class or split, and the files that they are; without millions of objects."""

    part: Part
    inodes: NDArray[np.uint64]
    """(rows, 2): device and number of each file; 0 where they are not known."""
    is_linked: NDArray[np.bool_]
    """(rows,): whether a symbolic link has led to the file."""


def file_part(
    keys: Sequence[str], classes: Sequence[int], entries: Sequence[storage.Entry]
) -> FilePart:
    """The part of some files or links."""
    part = part_of_files(keys, classes, [entry.file for entry in entries])
    inodes = np.array([entry.inode or (0, 0) for entry in entries], np.uint64).reshape(-1, 2)
    return FilePart(part, inodes, np.array([entry.is_linked for entry in entries], np.bool_))


def drop_repeated(parts: Sequence[FilePart], account: Account) -> list[Part]:
    """The parts without rows whose file is another row's too.

    A name that is not a link is kept before links, then the first one. A repeated name in the same
    class and split is ignored; one in another class or split is left over, because only the user
    knows which is right.
    """
    linked = {inode for part in parts for inode in _pairs(part, part.is_linked)}
    if not linked:
        return [part.part for part in parts]
    owner: dict[tuple[int, int], tuple[int, int]] = {}
    for number, part in enumerate(parts):
        chosen = ~part.is_linked & _may_be(part, linked)
        for inode, label in zip(_pairs(part, chosen), _labels(part, chosen), strict=True):
            owner.setdefault(inode, (number, label))
    kept = []
    for number, part in enumerate(parts):
        is_kept = np.ones(len(part.is_linked), np.bool_)
        rows = np.flatnonzero(part.is_linked).tolist()
        pairs, labels = _pairs(part, part.is_linked), _labels(part, part.is_linked)
        for row, inode, label in zip(rows, pairs, labels, strict=True):
            if inode not in owner:
                owner[inode] = number, label
                continue
            is_kept[row] = False
            if owner[inode] == (number, label):
                account.ignored[SAME_FILE] += 1
            else:
                account.add_unused(CONFLICT, [part.part.rows["path"][row].as_py()])
        kept.append(part.part._replace(rows=part.part.rows.filter(pa.array(is_kept))))
    return kept


def leave_over(
    account: Account, entries: Iterable[tuple[storage.Entry, str]], parts: Sequence[FilePart]
) -> None:
    """Account for files that are no rows: other names of rows' files are ignored, others left over.

    Args:
        account: to which they are added.
        entries: each with the reason, one of the constants of ``account``.
        parts: all rows.
    """
    others = list(entries)
    wanted = {entry.inode for entry, _ in others if entry.inode}
    used = {inode for part in parts for inode in _pairs(part, _may_be(part, wanted))} & wanted
    for entry, why in others:
        if entry.inode in used:
            account.ignored[SAME_FILE] += 1
        else:
            account.add_unused(why_unused(entry, why), [entry.file.path])


def _may_be(part: FilePart, inodes: Set[tuple[int, int]]) -> NDArray[np.bool_]:
    """Which rows' files have the number of one of these, perhaps on another device."""
    numbers = np.fromiter((number for _, number in inodes), np.uint64)
    # As in ``alexnet.inference.listing``: inodes of network drives are numbers of 64 bits.
    return np.isin(part.inodes[:, 1], numbers, kind="sort")


def _pairs(part: FilePart, chosen: NDArray[np.bool_]) -> list[tuple[int, int]]:
    return [(device, number) for device, number in part.inodes[chosen].tolist()]


def _labels(part: FilePart, chosen: NDArray[np.bool_]) -> list[int]:
    labels: list[int] = part.part.rows["label"].filter(pa.array(chosen)).to_pylist()
    return labels
