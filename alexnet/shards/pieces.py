"""Some images of a batch as they are stored, which one task decodes, copies or crops."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from alexnet.errors import CorruptShardError, one_line
from alexnet.shards.row_groups import RowGroupData
from alexnet.storage.maps import make_resident

Addresses = NDArray[np.int64]
"""(n,): where each of n images is in memory, 196,608 contiguous bytes."""


class Piece(NamedTuple):
    """Some consecutive images of a batch as they are stored, n images."""

    paths: list[str]
    """(n,): the shard of each."""
    groups: list[RowGroupData]
    """(n,): its row group."""
    indices: list[int]
    """(n,): its index within the row group."""

    def labels(self) -> list[np.int32]:
        """(n,)."""
        return [group.labels[index] for group, index in zip(self.groups, self.indices, strict=True)]

    def is_raw(self) -> bool:
        """Whether no image needs a decoder."""
        return all(group.raw for group in self.groups)

    def addresses(self) -> Addresses:
        """Where raw images are, as long as the piece is referred to."""
        pairs = zip(self.groups, self.indices, strict=True)
        return np.array([group.address + group.starts[index] for group, index in pairs], np.int64)

    def stored(self) -> list[NDArray[np.uint8]]:
        """(n,): the stored bytes of each image."""
        pairs = zip(self.groups, self.indices, strict=True)
        return [group.data[group.starts[index] : group.ends[index]] for group, index in pairs]

    def make_resident(self) -> None:
        """Read the images that are mapped but no longer in the page cache.

        Raises:
            CorruptShardError: a shard can't be read.
        """
        for path, image in zip(self.paths, self.stored(), strict=True):
            try:
                make_resident(image, path)
            except OSError as error:
                raise CorruptShardError(f"{path}: can't be read ({one_line(error)})") from error
