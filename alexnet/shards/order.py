"""The order of the training rows: pure functions of (seed, epoch, offset, rank, world_size).

An epoch is a sequence of all rows that does not depend on the number of workers. A global batch is
``batch_size`` consecutive rows of it. So the state of the data is two integers, the epoch and the
offset: a run that resumes there, with any number of workers, sees exactly the batches that an
uninterrupted run would have seen.

Rows are read in row groups. The groups are distributed in random order to ``LANES`` lanes. In each
lane, the rows of ``WINDOW`` consecutive groups are shuffled. The sequence takes one row from each
lane in turn. So a batch mixes rows of LANES x WINDOW groups, and a loader has to hold no more
groups than that. With several workers, each takes whole lanes of a batch where possible, so that
few groups are read by two workers. The shards are a global shuffle of the data set, so every group
is a random sample.

``"all"`` instead of ``"windows"``: a permutation of all rows, whose batches use as many groups as
they have rows. Lanes then only say which rows a worker takes.
"""

import itertools
from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

LANES = 8
"""Number of streams of row groups that a batch takes its rows from."""
WINDOW = 4
"""Row groups of a lane whose rows are shuffled together."""

MICROBATCHES = 4
"""Parts of a global batch of an exact training, which has as many workers at most. A power of 2."""

Rows = NDArray[np.int64]

ShuffleRows = Literal["windows", "all"]
"""Which rows are shuffled together."""


def epoch_order(
    groups: Sequence[int], seed: int, epoch: int, shuffle: ShuffleRows = "windows"
) -> tuple[Rows, Rows]:
    """The sequence of rows of one epoch, and the lane of each row.

    Args:
        groups: number of rows in each row group; row i of group g has the number
            ``sum(groups[:g]) + i``.
        seed: of the training run.
        epoch: from 0.
        shuffle: which rows are shuffled together.

    Returns:
        Two int64 arrays of ``sum(groups)`` elements: row numbers, each exactly once, and lanes.
    """
    random = np.random.default_rng([seed, epoch])
    ends = np.cumsum(groups, dtype=np.int64)
    if shuffle == "all":
        rows = random.permutation(sum(groups)).astype(np.int64)
        return rows, np.arange(len(rows), dtype=np.int64) % LANES
    shuffled_groups = random.permutation(len(groups))
    lanes = []
    for lane in range(LANES):
        lane_groups = shuffled_groups[lane::LANES]
        windows = [lane_groups[i : i + WINDOW] for i in range(0, len(lane_groups), WINDOW)]
        lanes.append([_shuffled_rows(window, groups, ends, random) for window in windows])
    return _interleave([np.concatenate([np.empty(0, np.int64), *rows]) for rows in lanes])


def rows_of_rank(lanes: Rows, rank: int, world_size: int, microbatches: int | None = None) -> Rows:
    """Positions of one worker's rows within a global batch.

    The batch, sorted by lane, is divided into ``world_size`` parts whose sizes differ by at most 1.
    If it is divided into ``microbatches``, each worker gets whole ones.

    Args:
        lanes: (rows of the batch,), the lane of each, from ``epoch_order``.
        rank: of the worker, from 0.
        world_size: number of workers.
        microbatches: number of such parts, whose sizes differ by at most 1.

    Returns:
        (rows of the worker,) int64.
    """
    by_lane = np.argsort(lanes, kind="stable").astype(np.int64)
    own = range(len(lanes))
    if microbatches is None:
        own = parts_of(own, world_size)[rank]
    else:
        numbers = parts_of(range(microbatches), world_size)[rank]
        parts = parts_of(own, microbatches)[numbers.start : numbers.stop]
        own = range(parts[0].start, parts[-1].stop) if parts else range(0)
    return by_lane[own.start : own.stop]


def parts_of(whole: range, count: int) -> list[range]:
    """A range in ``count`` parts whose lengths differ by at most 1, the longer ones first."""
    length, longer = divmod(len(whole), count)
    ends = [whole.start + number * length + min(number, longer) for number in range(count + 1)]
    return [range(start, end) for start, end in itertools.pairwise(ends)]


def _shuffled_rows(
    window: NDArray[np.intp], groups: Sequence[int], ends: Rows, random: np.random.Generator
) -> Rows:
    """The rows of a window's row groups in random order; ``ends`` is the end row of each group."""
    rows = [np.arange(ends[group] - groups[group], ends[group]) for group in window]
    return random.permutation(np.concatenate(rows))


def _interleave(lanes: Sequence[Rows]) -> tuple[Rows, Rows]:
    """One row from each lane that has rows left, in turn; also the lane of each row."""
    # Each is (all rows,): row number, its lane, its index within the lane.
    rows = np.concatenate(lanes)
    lane = np.repeat(np.arange(len(lanes)), [len(lane_rows) for lane_rows in lanes])
    index = np.concatenate([np.arange(len(lane_rows)) for lane_rows in lanes])
    order = np.lexsort((lane, index))
    return rows[order], lane[order]
