"""The index of a data set's raw images, in any of four layouts.

``read_source`` recognises the layout of a folder by its content and returns the same kind of index
for all: one row per image with its key, split, class and byte range. Nothing is unpacked and no
image is opened.

==========  =====================================================================================
layout      content of the folder
==========  =====================================================================================
archives    ``ILSVRC2012_img_train.tar``, ``ILSVRC2012_img_val.tar``,
            ``ILSVRC2012_devkit_t12.tar.gz``, as published on image-net.org
kaggle      ``ILSVRC/Data/CLS-LOC/{train/<wnid>,val}/``, ``LOC_synset_mapping.txt``,
            ``LOC_val_solution.csv``
parquet     ``train-*.parquet`` and ``validation-*.parquet``, optionally in ``data/``, as in data
            sets of the Hugging Face Hub; see ``parquet``
folders     ``{train,val}/<class>/`` with images at any depth, as in Imagenette
==========  =====================================================================================

Keys are ``train/<class>/<file>`` and ``val/<file>``. In the folders layout, where classes can have
files of the same name, and in the Parquet layout they are ``val/<class>/<file>``. Every visible
file counts as an image, because file extensions are unreliable; decoding shows whether it is one.
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
from alexnet.sources.index import (
    Part,
    check_splits,
    merge,
    part_of_archive,
    part_of_files,
    read_row,
    source_fingerprint,
)
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
from alexnet.sources.visible import visible_files, visible_folders

Layout = Literal["archives", "kaggle", "folders", "parquet"]

TRAIN_ARCHIVE = "ILSVRC2012_img_train.tar"
VAL_ARCHIVE = "ILSVRC2012_img_val.tar"
DEVKIT = "ILSVRC2012_devkit_t12.tar.gz"

KAGGLE_IMAGES = "ILSVRC/Data/CLS-LOC"
KAGGLE_MAPPING = "LOC_synset_mapping.txt"
KAGGLE_SOLUTION = "LOC_val_solution.csv"

# Class folders are listed in parallel: on a network drive or in an object store each takes time.
_THREADS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A data set's raw images."""

    layout: Layout
    """How the folder is organised."""
    index: pa.Table
    """One row per image, of ``index.SCHEMA``, sorted by key; keys are unique."""
    labels: tuple[Label, ...]
    """The classes, by the index's ``label``."""
    source_fingerprint: str
    """sha256 of the source's file names, sizes and times of modification."""


class _Contents(NamedTuple):
    """What the reader of a layout returns."""

    labels: tuple[Label, ...]
    parts: list[Part]
    label_files: list[storage.File]
    """Files that contain labels and no images."""


def read_source(source: str, cache: str | None = None) -> Source:
    """Index the raw images in a folder.

    Args:
        source: the folder.
        cache: another folder, for a cache of the index of archives.

    Raises:
        UserError: the source has none of the four layouts, or is incomplete, damaged,
            contradictory or not readable.
        OSError: the cache can't be written.
    """
    root = storage.absolute(source)
    try:
        layout, read = _recognise(root)
        # The other layouts are not cached: to see whether a file has changed, they have to be
        # listed, and that is most of the work.
        archives = _stat_archives(root) if cache and layout == "archives" else None
        if cache and archives and (cached := load(cache, archives)):
            return Source(layout=layout, **cached._asdict())
        labels, parts, label_files = read(root)
    except (OSError, UnicodeError) as error:
        raise UserError(
            f"{root}: can't be read ({one_line(error)}); check that it is complete and that "
            "you have permission"
        ) from error
    indexed = Indexed(merge(parts, labels), labels, source_fingerprint(parts, label_files))
    check_splits(root, indexed.index, sizes_known=layout != "parquet")
    if cache and archives:
        save(cache, archives, indexed)
    return Source(layout=layout, **indexed._asdict())


def read_image(source: Source, row: Mapping[str, Any]) -> bytes:
    """The bytes of one row of the index; too slow for more than a few images of a Parquet source.

    Raises:
        UserError, OSError, EOFError: it can't be read.
    """
    if source.layout == "parquet":
        return parquet_extract.read_image(row["path"], row["offset"])
    return read_row(row)


def _recognise(root: str) -> tuple[Layout, Callable[[str], _Contents]]:
    """The layout of a folder, and its reader."""
    if storage.is_file(root):
        raise UserError(f"{root}: is a file; give the folder that contains it")
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
    # The folder of an unpacked data set often still contains its development kit.
    if {"train", "val"} <= folders and TRAIN_ARCHIVE in missing:
        return "folders", _read_folders
    if len(missing) < 3:
        raise UserError(f"{root}: {missing[0]} is missing; copy it to the other archives")
    if "train" in folders:
        others = sorted(folders & {"validation", "valid", "test"}, reverse=True)
        advice = f"rename {others[0]}/ to val/" if others else "add val/ with the same classes"
        raise UserError(f"{root}: contains train/ but no val/; {advice}")
    raise UserError(
        f"{root}: contains no data set; expected {TRAIN_ARCHIVE} with {VAL_ARCHIVE} and {DEVKIT}, "
        f"or {KAGGLE_IMAGES}/ with {KAGGLE_MAPPING} and {KAGGLE_SOLUTION}, or train/ and val/ with "
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
            f"{val.path}: contains {len(members.names)} images, but {DEVKIT} has labels of "
            f"{len(devkit.validation)} (devkit does not match); use files of one data set"
        )
    # The ground truth is in the order of names; the archive can have another order.
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
    _match_classes(train, visible_folders(train), index_by_wnid, KAGGLE_MAPPING)
    unknown = sorted(set(wnid_by_image.values()) - index_by_wnid.keys())
    if unknown:
        raise UserError(
            f"{solution}: class {unknown[0]} is not in {KAGGLE_MAPPING}; download both again"
        )

    files = visible_files(val)
    names = [file.path[len(val) + 1 :] for file in files]
    images = [name.rpartition(".")[0] for name in names]
    unmatched = sorted(wnid_by_image.keys() ^ set(images))
    if unmatched:
        raise UserError(
            f"{val}: {unmatched[0]} is only here or only in {KAGGLE_SOLUTION} (they do not match); "
            "download both again"
        )
    classes = [index_by_wnid[wnid_by_image[image]] for image in images]
    val_part = part_of_files([f"val/{name}" for name in names], classes, files)
    parts = [*_class_parts(train, "train", index_by_wnid), val_part]
    return _Contents(labels, parts, [storage.stat(mapping), storage.stat(solution)])


def _read_folders(root: str) -> _Contents:
    train, val = (storage.join(root, split) for split in ("train", "val"))
    classes = {folder: visible_folders(folder) for folder in (train, val)}
    for folder, wnids in classes.items():
        if not wnids:
            raise UserError(f"{folder}: contains no class folders; put each class into its own")
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
        raise UserError(f"{root}: contains train-*.parquet but no validation-*.parquet; add them")
    return _Contents(*parquet.read(files), [])


def _class_parts(folder: str, split: str, index_by_wnid: Mapping[str, int]) -> list[Part]:
    """The images of each class: all files in the class's folder, at any depth."""

    def read_class(wnid: str, index: int) -> Part:
        files = visible_files(storage.join(folder, wnid))
        if not files:
            raise _no_images(storage.join(folder, wnid))
        keys = [f"{split}/{file.path[len(folder) + 1 :]}" for file in files]
        return part_of_files(keys, [index] * len(files), files)

    with ThreadPoolExecutor(_THREADS) as threads:
        return list(threads.map(read_class, index_by_wnid.keys(), index_by_wnid.values()))


def _match_classes(
    path: str, classes: Iterable[str], expected: Iterable[str], label_file: str
) -> None:
    """Check that the training set has exactly the classes of the file with the labels.

    Raises:
        UserError: a class is missing or unknown.
    """
    missing, unknown = set(expected) - set(classes), set(classes) - set(expected)
    if missing or unknown:
        fault = f"lacks {min(missing)}" if missing else f"contains {min(unknown)}"
        contrast = "has" if missing else "does not have"
        raise UserError(
            f"{path}: {fault}, which {label_file} {contrast} (they do not match); use files of "
            "one data set"
        )


def _no_images(path: str) -> UserError:
    return UserError(f"{path}: contains no images; add some, or remove the class everywhere")
