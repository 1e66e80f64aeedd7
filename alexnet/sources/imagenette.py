"""Imagenette: ten classes of ILSVRC2012, 9,469 and 3,925 images, 1.6 GB, free to download.

https://github.com/fastai/imagenette; torchvision's data set class knows where it lies.
"""

import os

from alexnet import storage
from alexnet.errors import UserError, one_line

FOLDER = "imagenette2"


def fetch(workdir: str) -> str:
    """The folder with Imagenette's ``train`` and ``val``, downloaded if it is not there yet.

    Raises:
        UserError: it can't be downloaded, or the workdir is not on a local disk.
    """
    if storage.is_remote(workdir):
        raise UserError(
            f"Imagenette is downloaded to local disks only, not to {workdir}; "
            "copy it there and give --source"
        )
    place = os.path.join(workdir, FOLDER)
    if os.path.isdir(os.path.join(place, "train")) and os.path.isdir(os.path.join(place, "val")):
        return place
    from torchvision.datasets import Imagenette

    os.makedirs(workdir, exist_ok=True)
    print("preprocess: downloading Imagenette (1.6 GB)", flush=True)
    try:
        Imagenette(workdir, split="train", size="full", download=True)
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"Imagenette can't be downloaded ({one_line(error)}); "
            f"unpack imagenette2.tgz yourself and give its folder as --source"
        ) from error
    return place
