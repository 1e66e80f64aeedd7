"""The layout ``{train,val}/<class>/`` of single files, as in Imagenette."""

from collections.abc import Mapping

from alexnet import storage
from alexnet.errors import UserError
from alexnet.sources.account import (
    BESIDE,
    Account,
    count_beside,
    first_names,
    is_document,
)
from alexnet.sources.class_folders import Leftover, class_order, class_parts, count_loose
from alexnet.sources.index import Contents
from alexnet.sources.labels import Label, index_of_wnid, name_of_wnid
from alexnet.sources.same_file import FilePart, drop_repeated, leave_over
from alexnet.sources.states import explain_unsorted
from alexnet.sources.visible import Listing, list_folder


def read_folders(root: str, outside: str | None = None) -> Contents:
    """Labels and index of ``{train,val}/<class>/``.

    Args:
        root: the source.
        outside: a folder that is not part of the source, even if it is inside.

    Raises:
        UserError: a split has no class folders, or the splits contradict each other.
    """
    account = Account()
    folders = {split: storage.join(root, split) for split in ("train", "val")}
    levels = {split: list_folder(folder, recursive=False) for split, folder in folders.items()}
    for split, level in levels.items():
        _check_classes(folders[split], level)
    wnids = class_order(levels["train"].folders)
    labels = tuple(Label(wnid, name_of_wnid(wnid)) for wnid in wnids)
    index_by_wnid = index_of_wnid(labels)
    _match_val(folders["val"], levels, index_by_wnid)
    parts: list[FilePart] = []
    leftovers: list[Leftover] = []
    for split, level in levels.items():
        leftovers += count_loose(account, level)
        in_split = {wnid: index_by_wnid[wnid] for wnid in wnids if wnid in level.folders}
        more_parts, more = class_parts(folders[split], split, in_split, account)
        parts += more_parts
        leftovers += more
    absent = [wnid for wnid in wnids if wnid not in levels["val"].folders]
    account.add_missing("class folders missing in val/", absent)
    rest = count_beside(account, root, tuple(folders), outside=outside)
    leftovers += [(entry, BESIDE) for entry in rest]
    leave_over(account, leftovers, parts)
    return Contents(labels, drop_repeated(parts, account), [], account)


def _check_classes(folder: str, level: Listing) -> None:
    """Check that a split has class folders, and not only a folder that contains them.

    Raises:
        UserError: it has none.
    """
    if not level.folders:
        names = [entry.file.path[len(folder) + 1 :] for entry in level.entries]
        raise UserError(f"{folder}: {explain_unsorted(folder, names)}")
    if len(level.folders) > 1:
        return
    only = storage.join(folder, level.folders[0])
    inside = list_folder(only, recursive=False)
    if inside.folders and not any(e for e in inside.entries if not is_document(e.file.path)):
        raise UserError(
            f"{folder}: contains only the folder {level.folders[0]}/, with "
            f"{len(inside.folders):,} folders ({first_names(inside.folders)}): the classes are one "
            f"level too deep; move them up into {folder.rpartition('/')[2]}/"
        )


def _match_val(val: str, levels: Mapping[str, Listing], train_classes: Mapping[str, int]) -> None:
    """Check that the training set has all classes of the validation set.

    Raises:
        UserError: it lacks one.
    """
    unknown = [wnid for wnid in levels["val"].folders if wnid not in train_classes]
    if not unknown:
        return
    links = {e.file.path.rpartition("/")[2] for e in levels["train"].entries if e.kind != "file"}
    if links & set(unknown):
        name = min(links & set(unknown))
        raise UserError(
            f"{val.removesuffix('val')}train/{name}: is a link to nothing; restore the folder that "
            "it leads to"
        )
    of_train = f"train/ ({first_names(list(train_classes))})"
    if len(unknown) == len(levels["val"].folders):
        raise UserError(
            f"{val}: none of its folders ({first_names(unknown)}) is a class of {of_train}; if its "
            "images are not sorted yet, move each into the folder of its class"
        )
    raise UserError(
        f"{val}: its folders {first_names(unknown)} are no classes of {of_train}; complete "
        "train/ if it lacks them, or move them out of val/ if they are no classes"
    )
