"""Sets of 64-bit hashes in little memory: ten million take 80 MB, in a Python set a gigabyte."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]


@dataclass(slots=True)
class HashSet:
    """A set that grows by many hashes at a time."""

    _sorted: list[Hashes] = field(default_factory=list)
    """Sorted arrays, each less than half as long as the one before it."""

    def add(self, hashes: Hashes) -> None:
        """Add hashes; at most as many arrays are merged as keeps adding n hashes in O(n log² n)."""
        merged = np.sort(hashes)
        while self._sorted and len(self._sorted[-1]) <= 2 * len(merged):
            merged = np.concatenate([self._sorted.pop(), merged])
            merged.sort()
        self._sorted.append(merged)

    def contains(self, hashes: Hashes) -> NDArray[np.bool_]:
        """Which of some hashes are in the set."""
        found = np.zeros(len(hashes), bool)
        for part in self._sorted:
            found |= positions(part, hashes) >= 0
        return found


def positions(ordered: Hashes, hashes: Hashes) -> NDArray[np.int64]:
    """Where each hash is in a sorted array; -1 if it is not there."""
    if not len(ordered):
        return np.full(len(hashes), -1)
    index = np.searchsorted(ordered, hashes)
    index[index == len(ordered)] = 0
    return np.where(ordered[index] == hashes, index, -1)
