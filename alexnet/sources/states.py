"""Common states of a folder that can't be read as a data set, and what to do in each."""

import re
from collections.abc import Sequence

from alexnet import storage
from alexnet.errors import UserError
from alexnet.sources.account import first_names, is_archive
from alexnet.sources.archives import DEVKIT, TRAIN_ARCHIVE, VAL_ARCHIVE, missing_archives
from alexnet.sources.kaggle import IMAGES, MAPPING, SOLUTION
from alexnet.sources.parquet_files import find
from alexnet.sources.visible import list_folder

_OTHER_NAMES = {"train": ("training",), "val": ("validation", "valid", "test")}
"""Names of the splits in other data sets, the best first."""

_SEARCHED = 16
"""Folders in which a data set is looked for: more are the classes of one."""


def explain_folder(root: str) -> UserError:
    """The error for a folder without any of the layouts: what it is, then what to do."""
    level = list_folder(root, recursive=False)
    files = [entry.file.path[len(root) + 1 :] for entry in level.entries]
    folders = level.folders
    text = (
        _unsorted_folder(root, folders)
        or _missing_split(folders)
        or _missing_archive(root, files)
        or _inside(root, folders)
        or _of_a_split(root, folders)
        or _packed(files)
        or f"contains no data set; expected {TRAIN_ARCHIVE} with {VAL_ARCHIVE} and {DEVKIT}, or "
        f"{IMAGES}/ with {MAPPING} and {SOLUTION}, or train/ and val/ with one folder per class, "
        "or train-*.parquet and validation-*.parquet"
    )
    return UserError(f"{root}: {text}")


def explain_unsorted(folder: str, names: Sequence[str]) -> str:
    """What a split without class folders is, and what to do.

    Args:
        folder: its path.
        names: of the files in it.
    """
    above, is_kaggle, _ = folder.partition(f"/{IMAGES}/")
    if is_kaggle and storage.is_file(storage.join(above, MAPPING)):
        return f"is a part of Kaggle's layout, whose classes are in {MAPPING}; give {above}"
    archives = [name for name in names if is_archive(name)]
    metadata = [name for name in names if re.fullmatch(r"metadata\.(parquet|csv|jsonl)", name)]
    if _STATE in names:
        return _SAVED_TO_DISK
    if archives:
        return (
            f"contains no class folders, but archives ({first_names(archives)}); unpack each into "
            "a folder of its name"
        )
    if metadata:
        return (
            f"contains no class folders, but images whose classes are in {metadata[0]} (an image "
            "folder of the Hugging Face Hub); write Parquet files with "
            "`for split, part in datasets.load_dataset('imagefolder', data_dir=FOLDER).items(): "
            "part.to_parquet(f'{split}-00000-of-00001.parquet')` and give their folder, or move "
            "each image into the folder of its class"
        )
    found = f"but files ({first_names(names)})" if names else "and no files"
    return (
        f"contains no class folders, {found}; move each image into the folder of its class "
        "(ILSVRC2012 need not be unpacked: its three archives in one folder are read)"
    )


_STATE = "state.json"
_SAVED_TO_DISK = (
    "was written by Dataset.save_to_disk (Arrow files); write Parquet files with "
    "`for split, part in datasets.load_from_disk(FOLDER).items(): "
    "part.to_parquet(f'{split}-00000-of-00001.parquet')` and give their folder; the splits must be "
    "named train and validation"
)


def _unsorted_folder(root: str, folders: Sequence[str]) -> str:
    """A data set of the Hub's library ``datasets`` that is neither Parquet nor class folders."""
    for folder in [root, *(storage.join(root, name) for name in folders)]:
        level = list_folder(folder, recursive=False)
        names = [entry.file.path[len(folder) + 1 :] for entry in level.entries]
        known = (_STATE, "metadata.parquet", "metadata.csv", "metadata.jsonl")
        if not level.folders and set(names) & set(known):
            return explain_unsorted(folder, names)
    return ""


def _missing_archive(root: str, files: Sequence[str]) -> str:
    missing = missing_archives(root)
    if len(missing) == 3 and not any(name.startswith(TRAIN_ARCHIVE) for name in files):
        return ""
    for name in missing:
        packed = [file for file in files if re.fullmatch(rf"{re.escape(name)}\.\w+", file)]
        if packed:
            return f"{packed[0]} is compressed or unfinished; finish or decompress it to {name}"
    return f"{missing[0]} is missing; copy it to the other archives"


def _missing_split(folders: Sequence[str]) -> str:
    for split, names in _OTHER_NAMES.items():
        other = "val" if split == "train" else "train"
        if other in folders and split not in folders:
            found = [name for name in names if name in folders]
            advice = (
                f"rename {found[0]}/ to {split}/"
                if found
                else (f"add {split}/ with a folder for each class, as in {other}/")
            )
            return f"contains {other}/ but no {split}/; {advice}"
    return ""


def _inside(root: str, folders: Sequence[str]) -> str:
    """A data set in a folder one or two levels below."""
    for name in folders[:_SEARCHED]:
        path = storage.join(root, name)
        below = storage.list_folders(path)
        for inner in [path, *(storage.join(path, name) for name in below[:_SEARCHED])]:
            if _holds_data_set(inner):
                return f"contains no data set, but {inner[len(root) + 1 :]}/ does; give {inner}"
    return ""


def _holds_data_set(folder: str) -> bool:
    if {"train", "val"} <= set(storage.list_folders(folder)) or not missing_archives(folder):
        return True
    return storage.is_folder(storage.join(folder, IMAGES)) or find(folder) is not None


def _of_a_split(root: str, folders: Sequence[str]) -> str:
    """One split of a data set, given instead of the whole."""
    above, _, name = root.rpartition("/")
    if name in ("train", "val") and {"train", "val"} <= set(storage.list_folders(above)):
        return f"is one split of a data set; give {above}"
    if len(folders) > 1:
        return (
            f"contains folders ({first_names(folders)}), but neither train/ nor val/; if they are "
            "classes, move them into train/, and some images of each into val/"
        )
    return ""


def _packed(files: Sequence[str]) -> str:
    archives = [name for name in files if is_archive(name)]
    return f"contains packed files ({first_names(archives)}); unpack them first" if archives else ""
