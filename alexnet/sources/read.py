"""The index of a data set's raw images, in any of five layouts.

``read_source`` recognises the layout of a folder by its content and returns the same kind of index
for all: one row per image with its key, split, class and byte range. Nothing is unpacked and no
image is opened. The ``account`` says what becomes of every other file in the folder.

=============  ==================================================================================
layout         content of the folder
=============  ==================================================================================
archives       ``ILSVRC2012_img_train.tar``, ``ILSVRC2012_img_val.tar``,
               ``ILSVRC2012_devkit_t12.tar.gz``, as published on image-net.org
kaggle         ``ILSVRC/Data/CLS-LOC/{train/<wnid>,val}/``, ``LOC_synset_mapping.txt``,
               ``LOC_val_solution.csv``
parquet        ``train-*.parquet`` and ``validation-*.parquet``, optionally in ``data/``, as in
               data sets of the Hugging Face Hub; see ``parquet``
tiny-imagenet  ``train/<wnid>/images/``, ``val/images/``, ``val/val_annotations.txt``
folders        ``{train,val}/<class>/`` with images in them or in folders inside, as in Imagenette
=============  ==================================================================================

Keys are ``train/<class>/<file>`` and ``val/<file>``. Where validation images of two classes can
have the same name, they are ``val/<class>/<file>``. Every file in a class's folder counts as an
image unless its name is in ``ignored``, because file extensions are unreliable; decoding shows
whether it is one.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc

from alexnet import storage
from alexnet.errors import UserError, one_line
from alexnet.sources import parquet_extract
from alexnet.sources.account import BESIDE, OTHER_PART, Account, count_beside, why_unused
from alexnet.sources.archives import (
    DEVKIT_FORMS,
    OTHER_PARTS,
    TRAIN_ARCHIVE,
    VAL_ARCHIVE,
    missing_archives,
    read_archives,
    stat_archives,
)
from alexnet.sources.folders import read_folders
from alexnet.sources.index import (
    Contents,
    check_splits,
    merge,
    read_row,
    source_fingerprint,
)
from alexnet.sources.index_cache import Indexed, load, save
from alexnet.sources.kaggle import IMAGES, read_kaggle
from alexnet.sources.labels import Label
from alexnet.sources.parquet import read_parquet
from alexnet.sources.parquet_files import find
from alexnet.sources.pointers import find_pointers
from alexnet.sources.states import explain_folder
from alexnet.sources.tiny_imagenet import is_tiny_imagenet, read_tiny_imagenet

Layout = Literal["archives", "kaggle", "folders", "parquet", "tiny-imagenet"]


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
    """sha256 of the names, sizes and times of modification of the files that are used."""
    account: Account
    """What becomes of every file."""


def without_content(source: Source) -> list[str]:
    """Keys of images that are empty files or links to nothing, which will be rejects."""
    if source.layout == "parquet":
        return []
    rows = source.index.filter(pc.less_equal(source.index["size"], 0))
    keys: list[str] = rows["key"].to_pylist()
    return keys


def read_source(source: str, cache: str | None = None, outside: str | None = None) -> Source:
    """Index the raw images in a folder.

    Files that would not be used, and files that are missing, raise no error here; the account has
    them.

    Args:
        source: the folder.
        cache: another folder, for a cache of the index of archives.
        outside: a folder whose content is not part of the source, even if it is in it; the
            source may be in that folder.

    Raises:
        UserError: the source has none of the layouts, or is damaged, contradictory or not readable.
        OSError: the cache can't be written.
    """
    root = storage.absolute(source)
    outside = storage.absolute(outside) if outside else None
    if outside and root.startswith(f"{outside}/"):
        outside = None
    try:
        layout, read = _recognise(root, outside)
        # The other layouts are not cached: to see whether a file has changed, they have to be
        # listed, and that is most of the work.
        archives = stat_archives(root) if cache and layout == "archives" else None
        indexed = load(cache, archives) if cache and archives else None
        if indexed is None:
            labels, parts, label_files, account = read(root)
            index = merge(parts, labels)
            account.images = len(index)
            fingerprint = source_fingerprint(parts, label_files)
            indexed = Indexed(index, labels, fingerprint, account)
            check_splits(root, index, sizes_known=layout != "parquet")
            if layout != "parquet":
                account.add_missing(*find_pointers(index))
            if cache and archives:
                save(cache, archives, indexed)
        if layout == "archives":
            _count_beside_archives(indexed.account, root, outside)
    except (OSError, UnicodeError) as error:
        raise UserError(
            f"{root}: can't be read ({one_line(error)}); check that it is complete and that "
            "you have permission"
        ) from error
    return Source(layout=layout, **indexed._asdict())


def read_image(source: Source, row: Mapping[str, Any]) -> bytes:
    """The bytes of one row of the index; too slow for more than a few images of a Parquet source.

    Raises:
        UserError, OSError, EOFError: it can't be read.
    """
    if source.layout == "parquet":
        return parquet_extract.read_image(row["path"], row["offset"])
    return read_row(row)


def _recognise(root: str, outside: str | None) -> tuple[Layout, Callable[[str], Contents]]:
    """The layout of a folder, and its reader."""
    if storage.is_file(root):
        raise UserError(f"{root}: is a file; give the folder that contains it")
    if not storage.exists(root):
        raise UserError(f"{root}: no such folder; check the path")
    folders = set(storage.list_folders(root))
    missing = missing_archives(root)
    if not missing:
        return "archives", read_archives
    if storage.is_folder(storage.join(root, IMAGES)):
        return "kaggle", partial(read_kaggle, outside=outside)
    if parquet_files := find(root):
        return "parquet", partial(read_parquet, files=parquet_files, outside=outside)
    if is_tiny_imagenet(root):
        return "tiny-imagenet", partial(read_tiny_imagenet, outside=outside)
    # The folder of an unpacked data set often still contains its development kit.
    if {"train", "val"} <= folders and TRAIN_ARCHIVE in missing:
        return "folders", partial(read_folders, outside=outside)
    raise explain_folder(root)


def _count_beside_archives(account: Account, root: str, outside: str | None) -> None:
    known = (TRAIN_ARCHIVE, VAL_ARCHIVE, *DEVKIT_FORMS)
    rules = dict.fromkeys(OTHER_PARTS, OTHER_PART)
    for entry in count_beside(account, root, known, rules=rules, outside=outside):
        account.add_unused(why_unused(entry, BESIDE), [entry.file.path])
