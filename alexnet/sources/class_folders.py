"""The folders of a split's classes, and the images in them.

All classes of a split have their images directly in their folders, or all have them in folders
inside, at any depth: there, a folder inside one class is as likely a mistake as a part of it.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from alexnet import storage
from alexnet.errors import UserError
from alexnet.sources.account import (
    DOCUMENT,
    LOOSE,
    NESTED,
    Account,
    first_names,
    is_document,
)
from alexnet.sources.same_file import FilePart, file_part
from alexnet.sources.visible import Listing, list_folder

# Class folders are listed in parallel: on a network drive or in an object store each takes time.
_THREADS = 16

Leftover = tuple[storage.Entry, str]
"""A file that is no row, and the reason."""


class _Class(NamedTuple):
    """What is below a class's folder."""

    direct: FilePart
    """The files directly in it."""
    direct_images: int
    """How many of them are not texts, judged by their names."""
    nested: list[storage.Entry]
    """The files in folders inside it."""
    ignored: Counter[str]


def class_order(names: Sequence[str]) -> list[str]:
    """Classes in the order of their indices: as text, or as numbers if all are whole numbers.

    The folders of ImageNet-V2, ``0`` to ``999``, are the class indices of ILSVRC2012.
    """
    if all(name.isascii() and name.isdecimal() for name in names):
        return sorted(names, key=lambda name: (int(name), name))
    return sorted(names)


def count_loose(account: Account, level: Listing) -> list[Leftover]:
    """Account for the files beside a split's class folders; returns those that are left over."""
    account.ignored.update(level.ignored)
    leftovers = []
    for entry in level.entries:
        if entry.kind == "file" and is_document(entry.file.path.rpartition("/")[2]):
            account.ignored[DOCUMENT] += 1
        else:
            leftovers.append((entry, LOOSE))
    return leftovers


def class_parts(
    folder: str, split: str, index_by_wnid: Mapping[str, int], account: Account
) -> tuple[list[FilePart], list[Leftover]]:
    """The images of each class of a split, and the files in its folders that are left over.

    Args:
        folder: with the class folders.
        split: the first part of the keys.
        index_by_wnid: the index of each class that has a folder there.
        account: to which ignored files and notes are added.

    Raises:
        UserError: a class has no images.
    """

    def keys_of(entries: Sequence[storage.Entry]) -> list[str]:
        return [f"{split}/{entry.file.path[len(folder) + 1 :]}" for entry in entries]

    def read_class(wnid: str, index: int) -> _Class:
        path = storage.join(folder, wnid)
        listing = list_folder(path)
        direct: list[storage.Entry] = []
        nested: list[storage.Entry] = []
        for entry in listing.entries:
            (nested if "/" in entry.file.path[len(path) + 1 :] else direct).append(entry)
        images = sum(not is_document(entry.file.path.rpartition("/")[2]) for entry in direct)
        part = file_part(keys_of(direct), [index] * len(direct), direct)
        return _Class(part, images, nested, listing.ignored)

    with ThreadPoolExecutor(_THREADS) as threads:
        classes = dict(
            zip(
                index_by_wnid,
                threads.map(read_class, index_by_wnid.keys(), index_by_wnid.values()),
                strict=True,
            )
        )
    for content in classes.values():
        account.ignored.update(content.ignored)
    all_nested = not any(content.direct_images for content in classes.values())
    parts, leftovers = [], []
    for wnid, content in classes.items():
        path = storage.join(folder, wnid)
        if all_nested and content.nested:
            account.ignored[DOCUMENT] += len(content.direct.is_linked)
            indices = [index_by_wnid[wnid]] * len(content.nested)
            parts.append(file_part(keys_of(content.nested), indices, content.nested))
            continue
        if not content.direct_images:
            raise _no_images(path, content.nested)
        parts.append(content.direct)
        for entry in content.nested:
            if is_document(entry.file.path.rpartition("/")[2]):
                account.ignored[DOCUMENT] += 1
            else:
                leftovers.append((entry, NESTED))
    nested = next((c.nested[0] for c in classes.values() if all_nested and c.nested), None)
    if nested:
        account.notes.append(
            f"classes of {split}/ have their images in folders inside, such as "
            f"{nested.file.path[len(folder) + 1 :].rpartition('/')[0]}/"
        )
    return parts, leftovers


def _no_images(path: str, nested: Sequence[storage.Entry]) -> UserError:
    if nested:
        return UserError(
            f"{path}: contains no images, but folders with {len(nested):,} files "
            f"({first_names([entry.file.path[len(path) + 1 :] for entry in nested])}), while other "
            "classes have their images directly in their folders; move them up"
        )
    return UserError(
        f"{path}: contains no images; copy or unpack them again, or, if the data set is to be "
        "without this class, remove its folder in train/ and in val/"
    )
