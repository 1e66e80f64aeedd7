"""The layout of the official archives of ILSVRC2012, which are read in place.

The development kit may also be the plain tar or the folder that browsers make of it.
"""

from alexnet import storage
from alexnet.errors import UserError
from alexnet.sources.account import Account
from alexnet.sources.index import Contents, match_classes, part_of_archive
from alexnet.sources.labels import read_devkit
from alexnet.sources.tar import Members, list_members, list_nested

TRAIN_ARCHIVE = "ILSVRC2012_img_train.tar"
VAL_ARCHIVE = "ILSVRC2012_img_val.tar"
DEVKIT = "ILSVRC2012_devkit_t12.tar.gz"
DEVKIT_FORMS = (DEVKIT, "ILSVRC2012_devkit_t12.tar", "ILSVRC2012_devkit_t12")

OTHER_PARTS = (
    "ILSVRC2012_img_test.tar",
    "ILSVRC2012_img_test_v10102019.tar",
    "ILSVRC2012_img_train_t3.tar",
    "ILSVRC2012_devkit_t3.tar.gz",
    "ILSVRC2012_bbox_train_v2.tar.gz",
    "ILSVRC2012_bbox_val_v3.tgz",
    "ILSVRC2012_bbox_train_dogs.zip",
    "ILSVRC2012_bbox_test_dogs.zip",
)
"""Archives of the same data set that are not needed: test images, bounding boxes, other tasks."""


def find_devkit(root: str) -> str | None:
    """The development kit's path: a file or a folder."""
    paths = [storage.join(root, name) for name in DEVKIT_FORMS]
    return next((path for path in paths if storage.exists(path)), None)


def missing_archives(root: str) -> list[str]:
    """Names of those archives that are not in a folder."""
    missing = [
        name
        for name in (TRAIN_ARCHIVE, VAL_ARCHIVE)
        if not storage.is_file(storage.join(root, name))
    ]
    return missing if find_devkit(root) else [*missing, DEVKIT]


def stat_archives(root: str) -> list[storage.File]:
    """The training archive, the validation archive and the development kit's files.

    Raises:
        FileNotFoundError: an archive is missing.
    """
    archives = [storage.stat(storage.join(root, name)) for name in (TRAIN_ARCHIVE, VAL_ARCHIVE)]
    devkit = find_devkit(root) or storage.join(root, DEVKIT)
    files = storage.list_files(devkit) if storage.is_folder(devkit) else [storage.stat(devkit)]
    return [*archives, *files]


def read_archives(root: str) -> Contents:
    """Labels and index of the archives; files beside them are not in the account.

    Raises:
        UserError: an archive can't be read, or they contradict each other.
        FileNotFoundError: one is missing.
    """
    train, val, *devkit_files = stat_archives(root)
    devkit_path = find_devkit(root)
    assert devkit_path
    name = devkit_path.rpartition("/")[2]
    devkit = read_devkit(devkit_path)
    nested = list_nested(train.path)
    match_classes(train.path, nested.members, [f"{wnid}.tar" for wnid, _ in devkit.labels], name)
    parts = []
    for index, (wnid, _) in enumerate(devkit.labels):
        members = nested.members[f"{wnid}.tar"]
        if not members.names:
            raise UserError(
                f"{train.path}: {wnid}.tar: contains no images; compare the archive's md5 sum with "
                "the published one"
            )
        keys = [f"train/{wnid}/{name}" for name in members.names]
        parts.append(part_of_archive(train, keys, [index] * len(keys), members))

    listed = list_members(val.path)
    members = listed.members
    if len(members.names) != len(devkit.validation):
        raise UserError(
            f"{val.path}: contains {len(members.names)} images, but {name} has labels of "
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
    account = Account(others=2 + len(devkit_files) + len(nested.members))
    account.ignored.update(nested.ignored + listed.ignored)
    return Contents(devkit.labels, parts, devkit_files, account)
