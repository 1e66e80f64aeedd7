"""The settings of ``train`` that choose the order of the images and how shards are read."""

from typing import Literal

from pydantic import BaseModel

from pipelines.configuration.setting_types import option


class ReadingSettings(BaseModel):
    """A part of the settings of ``train``."""

    shuffle: Literal["once", "every-epoch"] | None = option(
        None,
        "whether all epochs have the same order of images and the same batches, as in the authors' "
        "source, or each its own; by default the recipe's",
        result=True,
    )
    shuffle_rows: Literal["windows", "all"] = option(
        "windows",
        "which training images are shuffled together: those of 32 row groups at a time, or all; "
        "all needs shards on local disks",
        result=True,
    )
    verify_reads: Literal["always", "once", "never"] = option(
        "once",
        "compare the training shards with their checksums whenever they are read, when each worker "
        "first reads them, or never",
    )
