"""Every row once, the same batches for any number of workers, and well mixed batches."""

import itertools
from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alexnet.shards.order import LANES, WINDOW, Rows, ShuffleRows, epoch_order, rows_of_rank

GROUPS = st.lists(st.integers(0, 40), min_size=0, max_size=60)
SEEDS = st.integers(0, 2**63 - 1)
SHUFFLES = st.sampled_from(get_args(ShuffleRows))


def batches_of(
    groups: list[int], seed: int, size: int, world_size: int, shuffle: ShuffleRows, offset: int = 0
) -> list[list[int]]:
    """Global batches, reassembled from the parts of the workers."""
    rows, lanes = epoch_order(groups, seed, 3, shuffle)
    batches = []
    for start in range(offset, len(rows), size):
        part = slice(start, start + size)
        positions_of_rank = [
            rows_of_rank(lanes[part], rank, world_size) for rank in range(world_size)
        ]
        positions = np.concatenate(positions_of_rank)
        batch = np.empty(len(positions), np.int64)
        batch[positions] = rows[part][positions]
        assert sorted(positions.tolist()) == list(range(len(rows[part])))
        batches.append(batch.tolist())
    return batches


@given(groups=GROUPS, seed=SEEDS, epoch=st.integers(0, 200), shuffle=SHUFFLES)
def test_every_row_occurs_once(
    groups: list[int], seed: int, epoch: int, shuffle: ShuffleRows
) -> None:
    rows, lanes = epoch_order(groups, seed, epoch, shuffle)
    assert sorted(rows.tolist()) == list(range(sum(groups)))
    assert lanes.shape == rows.shape
    assert rows.dtype == lanes.dtype == np.int64
    assert set(lanes.tolist()) <= set(range(LANES))


@given(groups=GROUPS, seed=SEEDS, epoch=st.integers(0, 200), shuffle=SHUFFLES)
def test_the_order_depends_only_on_the_arguments(
    groups: list[int], seed: int, epoch: int, shuffle: ShuffleRows
) -> None:
    np.random.seed(0)
    first = epoch_order(groups, seed, epoch, shuffle)
    np.random.seed(1)
    second = epoch_order(groups, seed, epoch, shuffle)
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


@given(
    lanes=st.lists(st.integers(0, LANES - 1), max_size=300).map(np.array),
    world_size=st.integers(1, 40),
)
def test_workers_have_equal_parts_of_a_batch(lanes: Rows, world_size: int) -> None:
    parts = [rows_of_rank(lanes, rank, world_size) for rank in range(world_size)]
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(lanes)))
    sizes = [len(part) for part in parts]
    assert max(sizes) - min(sizes) <= 1


@given(
    groups=GROUPS,
    seed=SEEDS,
    size=st.integers(1, 150),
    world_sizes=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    done=st.integers(0, 20),
    shuffle=SHUFFLES,
)
@settings(max_examples=60)
def test_any_number_of_workers_resumes_with_the_same_batches(
    groups: list[int],
    seed: int,
    size: int,
    world_sizes: tuple[int, int],
    done: int,
    shuffle: ShuffleRows,
) -> None:
    uninterrupted = batches_of(groups, seed, size, world_sizes[0], shuffle)
    resumed = batches_of(groups, seed, size, world_sizes[1], shuffle, offset=done * size)
    assert resumed == uninterrupted[done:]
    assert sum(map(len, uninterrupted)) == sum(groups)


@pytest.mark.parametrize("shuffle", get_args(ShuffleRows))
def test_epochs_and_seeds_have_different_orders(shuffle: ShuffleRows) -> None:
    groups = [64] * 100
    orders = [
        epoch_order(groups, seed, epoch, shuffle)[0] for seed in range(4) for epoch in range(4)
    ]
    for first, second in itertools.combinations(orders, 2):
        # Two random orders of 6400 rows agree in about one position; 100 groups correlate by 0.1.
        assert (first == second).sum() < 12
        assert abs(np.corrcoef(first, second)[0, 1]) < 0.3


@pytest.mark.parametrize("last", [64, 17])
def test_a_batch_mixes_many_row_groups(last: int) -> None:
    groups = [64] * 399 + [last]
    ends = np.cumsum(groups)
    rows, _ = epoch_order(groups, seed=1, epoch=2)
    of_group = np.searchsorted(ends, rows, side="right")
    counts = [len(set(of_group[i : i + 128])) for i in range(0, len(rows) - 127, 128)]
    # 16 rows from each of 8 lanes, drawn from 4 groups: 31.7 groups on average at best.
    assert np.mean(counts) > 30
    assert min(counts[: int(0.9 * len(counts))]) >= 28
    # The next window has other groups: an epoch does not follow the order of the shards.
    first, second = (set(of_group[i : i + 2048]) for i in (0, 2048))
    assert len(first) == len(second) == LANES * WINDOW
    assert not first & second
    assert abs(np.corrcoef(np.arange(len(rows)), rows)[0, 1]) < 0.15


def test_all_rows_are_shuffled_uniformly() -> None:
    groups = [64] * 100
    rows, _ = epoch_order(groups, 0, 0, "all")
    # The number of row groups in a batch of 128 from 100: 100 · (1 - C(6336, 128)/C(6400, 128)).
    counts = [len(set((rows[i : i + 128] // 64).tolist())) for i in range(0, 6400, 128)]
    assert 71 < np.mean(counts) < 74
    # The mean distance of two random positions is a third of the number of rows, about 2133.
    position = np.argsort(rows)
    assert 2000 < np.abs(np.diff(position)).mean() < 2270


def test_neighbours_in_a_shard_are_far_apart_in_an_epoch() -> None:
    rows, _ = epoch_order([64] * 100, seed=0, epoch=0)
    position = np.empty_like(rows)
    position[rows] = np.arange(len(rows))
    distances = np.abs(np.diff(position.reshape(100, 64), axis=1))
    # The mean distance of two random positions in a window of 2048 is a third of it, about 683.
    assert 500 < distances.mean() < 900
    assert (distances < 16).mean() < 0.05


def test_few_row_groups_are_read_by_two_workers() -> None:
    groups = [64] * 160
    ends = np.cumsum(groups)
    rows, lanes = epoch_order(groups, seed=0, epoch=0)
    ranks_of_group: dict[int, set[int]] = {}
    for start in range(0, len(rows), 128):
        part = slice(start, start + 128)
        for rank in range(4):
            worker_rows = rows[part][rows_of_rank(lanes[part], rank, 4)]
            for group in np.searchsorted(ends, worker_rows, side="right").tolist():
                ranks_of_group.setdefault(group, set()).add(rank)
    assert len(ranks_of_group) == 160
    assert np.mean([len(ranks) for ranks in ranks_of_group.values()]) < 1.3


def test_a_bounded_number_of_groups_is_in_use() -> None:
    groups = [64] * 200
    of_group = np.searchsorted(np.cumsum(groups), epoch_order(groups, 5, 6)[0], side="right")
    first = {group: position for position, group in reversed(list(enumerate(of_group.tolist())))}
    last = {group: position for position, group in enumerate(of_group.tolist())}
    in_use = [
        sum(first[group] <= position <= last[group] for group in first)
        for position in range(0, len(of_group), 97)
    ]
    assert max(in_use) <= LANES * WINDOW
