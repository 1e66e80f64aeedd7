"""Imagenette: ten classes of ILSVRC2012, 9,469 and 3,925 images, 1.6 GB, free to download.

https://github.com/fastai/imagenette; torchvision's data set class holds the address of the file.
"""

import os
from collections.abc import Callable

from alexnet import storage
from alexnet.errors import DownloadError, one_line

FOLDER = "imagenette2"


def fetch(folder: str, on_download: Callable[[], None] = lambda: None) -> str:
    """The path of Imagenette's folders ``train`` and ``val``; downloads them if they are missing.

    Args:
        folder: the folder in which Imagenette's own folder is created.
        on_download: called once before a download starts.

    Raises:
        DownloadError: the download fails, or the folder is not on a local disk.
    """
    if storage.is_remote(folder):
        raise DownloadError(f"Imagenette is downloaded to local disks only, not to {folder}")
    path = os.path.join(folder, FOLDER)
    if os.path.isdir(os.path.join(path, "train")) and os.path.isdir(os.path.join(path, "val")):
        return path
    from torchvision.datasets import Imagenette

    os.makedirs(folder, exist_ok=True)
    on_download()
    try:
        Imagenette(folder, split="train", size="full", download=True)
    except (OSError, RuntimeError) as error:
        raise DownloadError(f"Imagenette can't be downloaded ({one_line(error)})") from error
    return path
