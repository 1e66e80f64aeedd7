"""Exact training: the same bits for one to four workers and any number of threads."""

import itertools
import math
import multiprocessing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from exact_processes import run_worker, train
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from alexnet.metrics import LossAndErrors
from alexnet.shards.manifest import Manifest
from alexnet.shards.order import MICROBATCHES, parts_of, rows_of_rank
from alexnet.training.exact import (
    LOSS_STEP,
    Node,
    exact_loss,
    largest_nodes,
    microbatch_sizes,
    microbatches_of_rank,
    tree_sum,
)
from pipelines.settings import TrainSettings


@given(start=st.integers(0, 99), length=st.integers(0, 99), count=st.integers(1, 20))
def test_parts_are_those_of_numpy(start: int, length: int, count: int) -> None:
    whole = range(start, start + length)
    expected = [part.tolist() for part in np.array_split(np.arange(start, start + length), count)]
    assert [list(part) for part in parts_of(whole, count)] == expected


@given(
    lanes=st.lists(st.integers(0, 7), max_size=40).map(lambda values: np.array(values, np.int64)),
    world_size=st.integers(1, MICROBATCHES),
)
def test_workers_have_the_same_microbatches_whatever_their_number(
    lanes: Any, world_size: int
) -> None:
    rows = [rows_of_rank(lanes, rank, world_size, MICROBATCHES) for rank in range(world_size)]
    np.testing.assert_array_equal(np.concatenate(rows), rows_of_rank(lanes, 0, 1, MICROBATCHES))
    sizes = microbatch_sizes(len(lanes))
    for rank, own in enumerate(rows):
        assert len(own) == sum(
            sizes[microbatch] for microbatch in microbatches_of_rank(rank, world_size)
        )


@given(
    filled=st.lists(st.booleans(), min_size=MICROBATCHES, max_size=MICROBATCHES),
    world_size=st.integers(1, MICROBATCHES),
)
def test_the_order_of_additions_does_not_depend_on_the_workers(
    filled: list[bool], world_size: int
) -> None:
    leaves = {(i, 1): str(i) for i in range(MICROBATCHES) if filled[i]}

    def add(left: str, right: str) -> str:
        return f"({left}+{right})"

    sums: dict[Node, str] = {}
    for rank in range(world_size):
        for node in largest_nodes(microbatches_of_rank(rank, world_size)):
            total = tree_sum(node, leaves.get, add)
            assert (total is None) == (not any(filled[node[0] : sum(node)]))
            sums |= {} if total is None else {node: total}
    expected = tree_sum((0, MICROBATCHES), leaves.get, add)
    assert tree_sum((0, MICROBATCHES), sums.get, add) == expected
    if all(filled):
        assert expected == "((0+1)+(2+3))"


@given(losses=st.lists(st.floats(0, 1e4, width=32), max_size=20), seed=st.integers(0, 9))
def test_sums_of_rounded_losses_do_not_depend_on_their_order(
    losses: list[float], seed: int
) -> None:
    rounded = [exact_loss(loss) for loss in losses]
    assert all(abs(a - b) <= LOSS_STEP / 2 for a, b in zip(rounded, losses, strict=True))
    shuffled = np.random.default_rng(seed).permutation(np.array(rounded))
    assert sum(shuffled.tolist()) == sum(rounded) == math.fsum(rounded)
    assert math.isnan(exact_loss(math.nan))
    assert exact_loss(math.inf) == math.inf


def of_workers(dataset: Manifest, folder: Path, world_size: int) -> list[dict[str, Any]]:
    """The results of an epoch on some workers, which are processes."""
    context = multiprocessing.get_context("spawn")
    arguments = [(rank, world_size, dataset.folder, str(folder)) for rank in range(world_size)]
    processes = [context.Process(target=run_worker, args=values) for values in arguments]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * world_size
    return [torch.load(folder / f"{r}.pt", weights_only=False) for r in range(world_size)]


def summed(results: list[dict[str, Any]]) -> list[LossAndErrors]:
    totals = []
    for of_step in zip(*(result["sums"] for result in results), strict=True):
        total = LossAndErrors()
        for part in of_step:
            total.add(part)
        totals.append(total)
    return totals


@pytest.mark.slow
@pytest.mark.parametrize(
    "world_size", [3, *(pytest.param(count, marks=pytest.mark.long) for count in (2, 4))]
)
def test_an_epoch_on_several_workers_equals_one_worker_bit_for_bit(
    dataset: Manifest, tmp_path: Path, world_size: int
) -> None:
    (alone, with_two_threads) = (train(dataset.folder, 0, 1, threads) for threads in (1, 2))
    results = [with_two_threads, *of_workers(dataset, tmp_path, world_size)]
    for result, (name, weights) in itertools.product(results, alone["weights"].items()):
        assert torch.equal(result["weights"][name], weights), name
    assert summed(results[:1]) == summed(results[1:]) == alone["sums"]
    assert len(alone["sums"]) == 6 + 1


@pytest.mark.parametrize(
    ("others", "named"),
    [
        ({"num_workers": 5}, "4 workers at most"),
        ({"num_workers": "2:8"}, "4 workers at most"),
        ({"device": "cuda"}, "--device cuda"),
        ({"compile": True}, "--compile on"),
        ({"gradient_compression": "bf16"}, "--gradient-compression bf16"),
    ],
)
def test_options_that_an_exact_training_excludes(others: dict[str, Any], named: str) -> None:
    with pytest.raises(ValidationError, match=named):
        TrainSettings.model_validate({"exact": True} | others)
    TrainSettings.model_validate(others)
