"""Check of the official archives' md5 sums, which image-net.org publishes."""

import hashlib
from collections.abc import Callable, Mapping

from alexnet import storage
from alexnet.errors import UserError, one_line
from alexnet.sources.archives import DEVKIT, TRAIN_ARCHIVE, VAL_ARCHIVE

OFFICIAL: Mapping[str, str] = {
    TRAIN_ARCHIVE: "1d675b47d978889d74fa0da5fadfb00e",
    VAL_ARCHIVE: "29b22e2961454d5413ddabcf34fc5622",
    DEVKIT: "fa75699e90414af021442c21a62c3abf",
}
"""md5 by file name."""

CHUNK_BYTES = 8 * 2**20
"""Bytes that are read at once; large chunks need few requests to an object store."""


def verify(
    path: str, expected: str, on_progress: Callable[[int, int], None] = lambda done, total: None
) -> None:
    """Read a whole file and compare its md5.

    Args:
        path: the file.
        expected: the right md5, 32 hexadecimal digits.
        on_progress: called after each chunk with the bytes read so far and the file's size.

    Raises:
        UserError: the md5 is not the expected one, or the file can't be read.
    """
    digest = hashlib.md5(usedforsecurity=False)
    done = 0
    try:
        with storage.open_input(path) as file:
            total = file.size()
            while chunk := file.read(CHUNK_BYTES):
                digest.update(chunk)
                done += len(chunk)
                on_progress(done, total)
    except OSError as error:
        raise UserError(
            f"{path}: can't be read ({one_line(error)}); check that it exists and that "
            "you have permission"
        ) from error
    actual = digest.hexdigest()
    if actual != expected.lower():
        raise UserError(
            f"{path}: md5 is {actual}, not {expected.lower()}; the file is damaged or another "
            "one: download it again"
        )
