"""Where the raw images of a data set lie, whatever form it was given in.

``read_source`` looks at what a folder holds, recognises one of four forms and returns the same
index for all: one row per image with its key, split, class and byte range. Nothing is unpacked
and no image is opened.

==========  =====================================================================================
form        what the folder holds
==========  =====================================================================================
archives    ``ILSVRC2012_img_train.tar``, ``ILSVRC2012_img_val.tar``,
            ``ILSVRC2012_devkit_t12.tar.gz``, as image-net.org serves them
kaggle      ``ILSVRC/Data/CLS-LOC/{train/<wnid>,val}/``, ``LOC_synset_mapping.txt``,
            ``LOC_val_solution.csv``
parquet     ``train-*.parquet`` and ``validation-*.parquet``, in ``data/`` or not, as data sets
            of the Hugging Face Hub; see ``parquet_source``
folders     ``{train,val}/<class>/`` with images at any depth, as Imagenette
==========  =====================================================================================

Keys are ``train/<class>/<file>`` and ``val/<file>``; ``val/<class>/<file>`` in the folders form,
where file names repeat from class to class, and in the parquet form. Any visible file is taken
for an image, since the endings of names lie; whether it is one shows when it is decoded.
"""

from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import pyarrow as pa

from alexnet import storage
from alexnet.errors import UserError, one_line
from alexnet.sources import parquet, parquet_extract
from alexnet.sources.index import Part, fingerprint, merge, part_of_archive, part_of_files
from alexnet.sources.index_cache import Indexed, load, save
from alexnet.sources.labels import (
    Label,
    index_of_wnid,
    name_of_wnid,
    read_devkit,
    read_synset_mapping,
    read_validation_solution,
)
from alexnet.sources.tar import Members, list_members, list_nested

Form = Literal["archives", "kaggle", "folders", "parquet"]

TRAIN_ARCHIVE = "ILSVRC2012_img_train.tar"
VAL_ARCHIVE = "ILSVRC2012_img_val.tar"
DEVKIT = "ILSVRC2012_devkit_t12.tar.gz"

KAGGLE_IMAGES = "ILSVRC/Data/CLS-LOC"
KAGGLE_MAPPING = "LOC_synset_mapping.txt"
KAGGLE_SOLUTION = "LOC_val_solution.csv"

# Class folders are listed side by side: on a network drive or in an object store listing waits.
_THREADS = 16

# Left behind by file managers that do not hide their files.
_LITTER = {"Thumbs.db", "desktop.ini"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A data set's raw images."""

    form: Form
    """How the images lie."""
    index: pa.Table
    """One row per image, of ``alexnet.index.SCHEMA``, sorted by key; keys are unique."""
    labels: tuple[Label, ...]
    """The classes; the index's ``label`` is a position here."""
    fingerprint: str
    """sha256 of the source's file names, sizes and times of change."""


class _Contents(NamedTuple):
    """What the reader of a form found."""

    labels: tuple[Label, ...]
    parts: list[Part]
    lists: list[storage.File]
    """Files that hold labels rather than images."""


def read_source(source: str, cache: str | None = None) -> Source:
    """Index the raw images in a folder.

    Args:
        source: the folder.
        cache: another folder, in which the index of archives is kept for the next time.

    Raises:
        UserError: the source holds none of the four forms, or one that is incomplete, damaged,
            contradictory or not readable.
        OSError: the cache can't be written.
    """
    root = storage.absolute(source)
    try:
        form, read = _recognise(root)
        # In the other forms the listing, which tells whether anything has changed, is the work.
        known_by = _stat_archives(root) if cache and form == "archives" else None
        if cache and known_by and (kept := load(cache, known_by)):
            return Source(form=form, **kept._asdict())
        labels, parts, lists = read(root)
    except (OSError, UnicodeError) as error:
        raise UserError(
            f"{root}: can't be read ({one_line(error)}); check that it is whole and that "
            "you have permission"
        ) from error
    found = Indexed(merge(parts, labels), labels, fingerprint(parts, lists))
    if cache and known_by:
        save(cache, known_by, found)
    return Source(form=form, **found._asdict())


def read_image(source: Source, row: Mapping[str, Any]) -> bytes:
    """One image's bytes, for a look at a few; ``row`` is one of the index.

    Raises:
        UserError, OSError, EOFError: it can't be read.
    """
    if source.form == "parquet":
        return parquet_extract.read_image(row["path"], row["offset"])
    return storage.read_range(row["path"], row["offset"], row["size"])


def _recognise(root: str) -> tuple[Form, Callable[[str], _Contents]]:
    """The form that a folder's content shows, and its reader."""
    if storage.is_file(root):
        raise UserError(f"{root}: is a file; give the folder that holds it")
    if not storage.exists(root):
        raise UserError(f"{root}: no such folder; check the path")
    files = {file.path[len(root) + 1 :] for file in storage.list_files(root, recursive=False)}
    folders = set(storage.list_folders(root))
    missing = [name for name in (TRAIN_ARCHIVE, VAL_ARCHIVE, DEVKIT) if name not in files]
    if not missing:
        return "archives", _read_archives
    if storage.is_folder(storage.join(root, KAGGLE_IMAGES)):
        return "kaggle", _read_kaggle
    if parquet_files := parquet.find(root):
        return "parquet", partial(_read_parquet, parquet_files)
    # An unpacked data set often has its development kit still beside it.
    if {"train", "val"} <= folders and TRAIN_ARCHIVE in missing:
        return "folders", _read_folders
    if len(missing) < 3:
        raise UserError(f"{root}: {missing[0]} is missing; put it beside the other archives")
    if "train" in folders:
        others = sorted(folders & {"validation", "valid", "test"}, reverse=True)
        advice = f"rename {others[0]}/ to val/" if others else "add val/ with the same classes"
        raise UserError(f"{root}: holds train/ but no val/; {advice}")
    raise UserError(
        f"{root}: holds no data set; expected {TRAIN_ARCHIVE} with {VAL_ARCHIVE} and {DEVKIT}, or "
        f"{KAGGLE_IMAGES}/ with {KAGGLE_MAPPING} and {KAGGLE_SOLUTION}, or train/ and val/ with "
        "one folder per class, or train-*.parquet and validation-*.parquet"
    )


def _stat_archives(root: str) -> list[storage.File]:
    names = (TRAIN_ARCHIVE, VAL_ARCHIVE, DEVKIT)
    return [storage.stat(storage.join(root, name)) for name in names]


def _read_archives(root: str) -> _Contents:
    train, val, devkit_file = _stat_archives(root)
    devkit = read_devkit(devkit_file.path)
    nested = list_nested(train.path)
    _match_classes(train.path, nested, [f"{wnid}.tar" for wnid, _ in devkit.labels], DEVKIT)
    parts = []
    for index, (wnid, _) in enumerate(devkit.labels):
        members = nested[f"{wnid}.tar"]
        if not members.names:
            raise _no_images(f"{train.path}: {wnid}.tar")
        keys = [f"train/{wnid}/{name}" for name in members.names]
        parts.append(part_of_archive(train, keys, [index] * len(keys), members))

    members = list_members(val.path)
    if len(members.names) != len(devkit.validation):
        raise UserError(
            f"{val.path}: holds {len(members.names)} images, but {DEVKIT} labels "
            f"{len(devkit.validation)} (devkit does not match); get both from the same place"
        )
    # The ground truth is in the order of names, which the archive need not keep.
    by_name = sorted(range(len(members.names)), key=members.names.__getitem__)
    ordered = Members(
        [members.names[i] for i in by_name],
        [members.offsets[i] for i in by_name],
        [members.sizes[i] for i in by_name],
    )
    keys = [f"val/{name}" for name in ordered.names]
    parts.append(part_of_archive(val, keys, devkit.validation, ordered))
    return _Contents(devkit.labels, parts, [devkit_file])


def _read_kaggle(root: str) -> _Contents:
    mapping, solution = (storage.join(root, name) for name in (KAGGLE_MAPPING, KAGGLE_SOLUTION))
    labels = read_synset_mapping(mapping)
    wnid_by_image = read_validation_solution(solution)
    train, val = (storage.join(root, KAGGLE_IMAGES, split) for split in ("train", "val"))
    index_by_wnid = index_of_wnid(labels)
    _match_classes(train, _visible_folders(train), index_by_wnid, KAGGLE_MAPPING)
    unknown = sorted(set(wnid_by_image.values()) - index_by_wnid.keys())
    if unknown:
        raise UserError(
            f"{solution}: class {unknown[0]} is not in {KAGGLE_MAPPING}; download both again"
        )

    files = _visible_files(val)
    names = [file.path[len(val) + 1 :] for file in files]
    images = [name.rpartition(".")[0] for name in names]
    unmatched = sorted(wnid_by_image.keys() ^ set(images))
    if unmatched:
        raise UserError(
            f"{val}: {unmatched[0]} is only here or only in {KAGGLE_SOLUTION}, which do not "
            "match; download both again"
        )
    classes = [index_by_wnid[wnid_by_image[image]] for image in images]
    val_part = part_of_files([f"val/{name}" for name in names], classes, files)
    lists = [storage.stat(mapping), storage.stat(solution)]
    return _Contents(labels, [*_class_parts(train, "train", index_by_wnid), val_part], lists)


def _read_folders(root: str) -> _Contents:
    train, val = (storage.join(root, split) for split in ("train", "val"))
    classes = {place: _visible_folders(place) for place in (train, val)}
    for place, found in classes.items():
        if not found:
            raise UserError(f"{place}: holds no class folders; put each class into its own")
    index_by_wnid = {wnid: index for index, wnid in enumerate(classes[train])}
    unknown = sorted(set(classes[val]) - index_by_wnid.keys())
    if unknown:
        raise UserError(f"{val}/{unknown[0]}: train/ has no such class; add or remove it")
    labels = tuple(Label(wnid, name_of_wnid(wnid)) for wnid in classes[train])
    in_val = {wnid: index_by_wnid[wnid] for wnid in classes[val]}
    parts = _class_parts(train, "train", index_by_wnid) + _class_parts(val, "val", in_val)
    return _Contents(labels, parts, [])


def _read_parquet(files: Mapping[str, list[storage.File]], root: str) -> _Contents:
    if not files["val"]:
        raise UserError(f"{root}: holds train-*.parquet but no validation-*.parquet; add them")
    return _Contents(*parquet.read(files), [])


def _class_parts(folder: str, split: str, index_by_wnid: Mapping[str, int]) -> list[Part]:
    """The images of each class in its folder, at any depth."""

    def read_class(wnid: str, index: int) -> Part:
        files = _visible_files(storage.join(folder, wnid))
        if not files:
            raise _no_images(storage.join(folder, wnid))
        keys = [f"{split}/{file.path[len(folder) + 1 :]}" for file in files]
        return part_of_files(keys, [index] * len(files), files)

    with ThreadPoolExecutor(_THREADS) as threads:
        return list(threads.map(read_class, index_by_wnid.keys(), index_by_wnid.values()))


def _visible_folders(folder: str) -> list[str]:
    return [name for name in storage.list_folders(folder) if not name.startswith(".")]


def _visible_files(folder: str) -> list[storage.File]:
    """Files at any depth, without what file managers leave behind."""

    def is_visible(file: storage.File) -> bool:
        parts = file.path[len(folder) + 1 :].split("/")
        return parts[-1] not in _LITTER and not any(part.startswith(".") for part in parts)

    return [file for file in storage.list_files(folder) if is_visible(file)]


def _match_classes(place: str, found: Iterable[str], expected: Iterable[str], known: str) -> None:
    """Refuse a training set whose classes are not exactly those of the list of labels."""
    missing, unknown = set(expected) - set(found), set(found) - set(expected)
    if missing or unknown:
        fault = f"lacks {min(missing)}" if missing else f"holds {min(unknown)}"
        contrast = "has" if missing else "does not have"
        raise UserError(
            f"{place}: {fault}, which {known} {contrast} (they do not match); get both from the "
            "same place"
        )


def _no_images(place: str) -> UserError:
    return UserError(f"{place}: holds no images; add some, or remove the class everywhere")
