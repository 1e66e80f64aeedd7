"""Which row is seen when: pure functions of (seed, epoch, offset, rank, world).

One epoch is one sequence of all rows that does not depend on the number of workers: a global
batch is ``batch_size`` consecutive rows of it, whoever computes them. So the position of a
training run is two integers, the epoch and the offset, and a run that resumes there, with any
number of workers, sees exactly the batches that an unbroken run would have seen.

Rows are read in row groups. The groups are dealt in random order to ``LANES`` lanes; in each
lane, a window of ``WINDOW`` groups is shuffled row by row; the sequence takes one row from each
lane in turn. A batch therefore mixes rows of LANES x WINDOW groups, while a reader needs to
hold no more than that. With several workers, each takes whole lanes of a batch where it can, so
that few groups are read twice. Shards are themselves a global shuffle of the data set, which
makes any group a fair sample.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

LANES = 8
WINDOW = 4

Rows = NDArray[np.int64]


def epoch_order(groups: Sequence[int], seed: int, epoch: int) -> tuple[Rows, Rows]:
    """The sequence of rows of one epoch, and the lane of each.

    Args:
        groups: number of rows in each row group; row i of group g has the number
            ``sum(groups[:g]) + i``.
        seed: the run's seed.
        epoch: from 0.

    Returns:
        Two int64 arrays of ``sum(groups)`` elements: row numbers, each exactly once, and lanes.
    """
    random = np.random.default_rng([seed, epoch])
    ends = np.cumsum(groups, dtype=np.int64)
    dealt = random.permutation(len(groups))
    lanes = []
    for lane in range(LANES):
        mine = dealt[lane::LANES]
        windows = [mine[i : i + WINDOW] for i in range(0, len(mine), WINDOW)]
        lanes.append([_shuffled_rows(window, groups, ends, random) for window in windows])
    return _interleave([np.concatenate([np.empty(0, np.int64), *rows]) for rows in lanes])


def rows_of_rank(lanes: Rows, rank: int, world: int) -> Rows:
    """Positions within one global batch that a worker computes.

    The batch, sorted by lane, is cut into ``world`` parts whose sizes differ by one at most.

    Args:
        lanes: the lane of each row of the batch, from ``epoch_order``.
        rank: this worker, from 0.
        world: number of workers.
    """
    by_lane = np.argsort(lanes, kind="stable").astype(np.int64)
    return np.array_split(by_lane, world)[rank]


def _shuffled_rows(
    window: NDArray[np.intp], groups: Sequence[int], ends: Rows, random: np.random.Generator
) -> Rows:
    rows = [np.arange(ends[group] - groups[group], ends[group]) for group in window]
    return random.permutation(np.concatenate(rows))


def _interleave(lanes: Sequence[Rows]) -> tuple[Rows, Rows]:
    """One row from each lane in turn; a lane that has run out is passed over."""
    rows = np.concatenate(lanes)
    lane = np.repeat(np.arange(len(lanes)), [len(rows) for rows in lanes])
    depth = np.concatenate([np.arange(len(rows)) for rows in lanes])
    turn = np.lexsort((lane, depth))
    return rows[turn], lane[turn]
