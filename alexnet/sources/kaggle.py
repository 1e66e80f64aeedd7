"""The layout of Kaggle's "ImageNet Object Localization Challenge", as it is unpacked.

Its validation images are in one folder, and ``LOC_val_solution.csv`` has their classes. They may
also be sorted into a folder for each class, some or all; then that file may be missing.
"""

from alexnet import storage
from alexnet.errors import UserError
from alexnet.sources.account import (
    ANNOTATIONS,
    BESIDE,
    DOCUMENT,
    LOOSE,
    Account,
    count_beside,
    first_names,
    is_document,
)
from alexnet.sources.class_folders import Leftover, class_parts, count_loose
from alexnet.sources.index import Contents, match_classes
from alexnet.sources.labels import index_of_wnid, read_synset_mapping, read_validation_solution
from alexnet.sources.same_file import FilePart, drop_repeated, file_part, leave_over
from alexnet.sources.visible import list_folder

IMAGES = "ILSVRC/Data/CLS-LOC"
MAPPING = "LOC_synset_mapping.txt"
SOLUTION = "LOC_val_solution.csv"


def read_kaggle(root: str, outside: str | None = None) -> Contents:
    """Labels and index of Kaggle's layout.

    Args:
        root: the source.
        outside: a folder that is not part of the source, even if it is inside.

    Raises:
        UserError: a file with labels can't be read, or files contradict each other.
    """
    account = Account()
    mapping, solution = (storage.join(root, name) for name in (MAPPING, SOLUTION))
    labels = read_synset_mapping(mapping)
    index_by_wnid = index_of_wnid(labels)
    train, val = (storage.join(root, IMAGES, split) for split in ("train", "val"))
    level = list_folder(train, recursive=False)
    match_classes(train, level.folders, index_by_wnid, MAPPING)
    leftovers = count_loose(account, level)
    parts, more = class_parts(train, "train", index_by_wnid, account)
    leftovers += more
    # The file may be missing if every image is in the folder of its class.
    is_sorted = any(wnid in index_by_wnid for wnid in storage.list_folders(val))
    has_solution = storage.is_file(solution)
    wnid_by_image = None if is_sorted and not has_solution else read_validation_solution(solution)
    unknown = sorted(set((wnid_by_image or {}).values()) - index_by_wnid.keys())
    if unknown:
        raise UserError(
            f"{solution}: class {unknown[0]} is not in {MAPPING}; use files of one data set"
        )
    val_part, more = _read_val(val, index_by_wnid, wnid_by_image, account)
    leftovers += more
    label_files = [storage.stat(mapping)] + ([storage.stat(solution)] if wnid_by_image else [])
    parts.append(val_part)
    account.others += len(label_files)
    rest = count_beside(account, root, (MAPPING, SOLUTION, "ILSVRC"), outside=outside)
    inside = {"ILSVRC": "Data", "ILSVRC/Data": "CLS-LOC"}
    for folder, known in inside.items():
        rules = {"Annotations": ANNOTATIONS, "ImageSets": ANNOTATIONS}
        rest += count_beside(account, storage.join(root, folder), (known,), rules=rules)
    rest += count_beside(account, storage.join(root, IMAGES), ("train", "val"))
    leave_over(account, [*leftovers, *((entry, BESIDE) for entry in rest)], parts)
    return Contents(labels, drop_repeated(parts, account), label_files, account)


def _read_val(
    val: str, index_by_wnid: dict[str, int], wnid_by_image: dict[str, str] | None, account: Account
) -> tuple[FilePart, list[Leftover]]:
    """The validation images, and the files that are left over.

    Args:
        val: the folder.
        index_by_wnid: index of each class.
        wnid_by_image: class of each image by its ID; None if the folders name the classes.
        account: to which ignored files and missing images are added.

    Raises:
        UserError: a folder and ``LOC_val_solution.csv`` name different classes, or no image fits.
    """
    listing = list_folder(val)
    account.ignored.update(listing.ignored)
    rows: list[storage.Entry] = []
    keys, classes, leftovers, images = [], [], [], set()
    for entry in listing.entries:
        name = entry.file.path[len(val) + 1 :]
        folder, _, last = name.rpartition("/")
        image = last.rpartition(".")[0]
        wnid = folder if wnid_by_image is None else wnid_by_image.get(image)
        if wnid not in index_by_wnid:
            if is_document(last):
                account.ignored[DOCUMENT] += 1
            else:
                without = LOOSE if wnid_by_image is None else f"not in {SOLUTION}: move them out"
                leftovers.append((entry, without))
            continue
        if folder in index_by_wnid and folder != wnid:
            raise UserError(
                f"{val}/{name}: is in the folder of {folder}, but {SOLUTION} has it in {wnid}; "
                "move it there"
            )
        keys.append(f"val/{last if folder in index_by_wnid else name}")
        classes.append(index_by_wnid[wnid])
        rows.append(entry)
        images.add(image)
    if listing.entries and not rows:
        names = [entry.file.path[len(val) + 1 :] for entry in listing.entries]
        raise UserError(
            f"{val}: none of its images ({first_names(names)}) is in {SOLUTION} (they do not "
            "match); use files of one data set"
        )
    absent = sorted((wnid_by_image or {}).keys() - images) if rows else []
    account.add_missing(f"images of {SOLUTION} missing in val/", absent)
    return file_part(keys, classes, rows), leftovers
