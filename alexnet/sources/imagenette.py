"""Imagenette: ten classes of ILSVRC2012, 9,469 and 3,925 images, 1.6 GB, free to download.

https://github.com/fastai/imagenette; torchvision's data set class holds the address of the file.
"""

import os
import shutil
from collections.abc import Callable

from alexnet import storage
from alexnet.errors import DownloadError, UserError, one_line
from alexnet.sources.visible import visible_files

FOLDER = "imagenette2"
FOLDERS = (FOLDER, "imagenette2-320", "imagenette2-160")
"""Folders of its archives: the same images in three sizes."""

ARCHIVE = "imagenette2.tgz"

IMAGES = {"train": 9469, "val": 3925}
"""Files in each split, as in https://huggingface.co/datasets/frgfm/imagenette."""


def fetch(folder: str, on_download: Callable[[], None] = lambda: None) -> str:
    """The path of Imagenette's folders ``train`` and ``val``; downloads them if they are missing.

    The archive is unpacked in a temporary folder, so an interrupted download is repeated. Two
    processes can't download into the same folder at the same time.

    Args:
        folder: the folder in which Imagenette's own folder is created.
        on_download: called once before a download starts.

    Raises:
        DownloadError: the download fails, or the folder is not on a local disk.
        UserError: the folder exists and is incomplete.
    """
    if storage.is_remote(folder):
        raise DownloadError(f"Imagenette is downloaded to local disks only, not to {folder}")
    path = os.path.join(folder, FOLDER)
    if not os.path.isdir(path):
        _download(path, on_download)
    check_complete(path)
    return path


def download_state(folder: str) -> str | None:
    """What ``fetch`` does with the same folder, in words; None if it downloads nothing.

    It can be called in another thread, for someone who waits.
    """
    temporary = os.path.join(folder, f"{FOLDER}.partial")
    if os.path.isdir(os.path.join(temporary, FOLDER)):
        return "unpacking Imagenette"
    try:
        size = os.path.getsize(os.path.join(temporary, ARCHIVE))
    except OSError:
        return None
    return f"downloading Imagenette, {size / 1e9:.2f} of 1.6 GB"


def _download(path: str, on_download: Callable[[], None]) -> None:
    from torchvision.datasets import Imagenette

    temporary = f"{path}.partial"
    unpacked = os.path.join(temporary, FOLDER)
    on_download()
    try:
        os.makedirs(temporary, exist_ok=True)
        # torchvision takes a folder of an interrupted run for complete, but checks the archive.
        if os.path.exists(unpacked):
            shutil.rmtree(unpacked)
        Imagenette(temporary, split="train", size="full", download=True)
        os.rename(unpacked, path)
    except (OSError, RuntimeError) as error:
        raise DownloadError(f"Imagenette can't be downloaded ({one_line(error)})") from error
    shutil.rmtree(temporary)


def check_complete(folder: str) -> None:
    """Check that a folder of Imagenette has as many images as its archive.

    Raises:
        UserError: it has fewer, as after an interrupted unpacking.
    """
    for split, expected in IMAGES.items():
        count = len(visible_files(storage.join(folder, split)))
        if count < expected:
            raise UserError(
                f"{folder}: {split}/ contains {count:,} of Imagenette's {expected:,} images; "
                "delete the folder and download or unpack it again, or, if images are left out on "
                "purpose, rename it"
            )
