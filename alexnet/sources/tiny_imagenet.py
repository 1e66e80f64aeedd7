"""Tiny-ImageNet: images in ``train/<wnid>/images/`` and ``val/images/``, with lists of classes.

``val/val_annotations.txt`` names the class of each validation image, ``wnids.txt`` the classes.
"""

from alexnet import storage
from alexnet.sources.account import BESIDE, Account, count_beside
from alexnet.sources.class_folders import class_parts, count_loose
from alexnet.sources.index import Contents, match_classes
from alexnet.sources.labels import index_of_wnid, read_tiny_annotations, read_tiny_labels
from alexnet.sources.same_file import drop_repeated, file_part, leave_over
from alexnet.sources.visible import list_folder

TINY_CLASSES, TINY_NAMES, TINY_ANNOTATIONS = "wnids.txt", "words.txt", "val_annotations.txt"
"""Files of Tiny-ImageNet: the classes, the names of all of WordNet, the validation classes."""


def is_tiny_imagenet(root: str) -> bool:
    """Whether a folder has the form of Tiny-ImageNet, with validation images in one folder."""
    val = storage.join(root, "val")
    return storage.is_file(storage.join(val, TINY_ANNOTATIONS)) and storage.is_folder(
        storage.join(val, "images")
    )


def read_tiny_imagenet(root: str, outside: str | None = None) -> Contents:
    """Labels and index of Tiny-ImageNet: ``train/<wnid>/images/``, ``val/images/``.

    Args:
        root: the source.
        outside: a folder that is not part of the source, even if it is inside.

    Raises:
        UserError: a file with labels can't be read, or files contradict each other.
    """
    account = Account()
    train, val = (storage.join(root, split) for split in ("train", "val"))
    annotations = storage.join(val, TINY_ANNOTATIONS)
    wnid_by_image = read_tiny_annotations(annotations)
    level = list_folder(train, recursive=False)
    classes, names = (storage.join(root, name) for name in (TINY_CLASSES, TINY_NAMES))
    label_files = [storage.stat(p) for p in (annotations, classes, names) if storage.is_file(p)]
    labels = read_tiny_labels(classes, names, level.folders)
    index_by_wnid = index_of_wnid(labels)
    match_classes(train, level.folders, index_by_wnid, TINY_CLASSES)
    in_val = {*wnid_by_image.values(), *index_by_wnid}
    match_classes(annotations, in_val, index_by_wnid, TINY_CLASSES)

    leftovers = count_loose(account, level)
    parts, more = class_parts(train, "train", index_by_wnid, account)
    images = list_folder(storage.join(val, "images"))
    account.ignored.update(images.ignored)
    rows: list[storage.Entry] = []
    for entry in images.entries:
        if entry.file.path.rpartition("/")[2] in wnid_by_image:
            rows.append(entry)
        else:
            leftovers.append((entry, f"without a class in {TINY_ANNOTATIONS}: delete them"))
    found = [entry.file.path.rpartition("/")[2] for entry in rows]
    absent = sorted(wnid_by_image.keys() - set(found))
    account.add_missing(f"images of {TINY_ANNOTATIONS} missing in val/images/", absent)
    indices = [index_by_wnid[wnid_by_image[name]] for name in found]
    keys = [
        f"val/{wnid_by_image[name]}/{entry.file.path[len(val) + len('/images/') :]}"
        for name, entry in zip(found, rows, strict=True)
    ]
    parts.append(file_part(keys, indices, rows))
    rest = count_beside(account, val, (TINY_ANNOTATIONS, "images"))
    known = ("train", "val", TINY_CLASSES, TINY_NAMES)
    rest += count_beside(account, root, known, outside=outside)
    leftovers += [*more, *((entry, BESIDE) for entry in rest)]
    leave_over(account, leftovers, parts)
    account.others += len(label_files)
    return Contents(labels, drop_repeated(parts, account), label_files, account)
