"""The division of a cluster's resources; no cluster is started."""

import json
from types import SimpleNamespace
from typing import Any

import pytest
import ray
import ray.train
import torch
from hypothesis import given
from hypothesis import strategies as st

from alexnet.errors import UserError
from pipelines import cluster
from pipelines.clusters import allocation
from pipelines.clusters.allocation import (
    NodeResources,
    WorkerResources,
    actor_resources,
    choose_gpus,
    most_cpus,
    training_resources,
    worker_slots,
)
from pipelines.training.state import decode_threads

Node = tuple[float, float]


class FakeCluster:
    """Nodes with CPUs and GPUs; a part of them is free."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.total: list[Node] = [(4, 0)]
        self.free: list[Node] | None = None
        self.report: dict[str, Any] | None = {"node_type_mapping": {"a1": "node_a1"}}
        monkeypatch.setattr(ray, "nodes", self.nodes)
        monkeypatch.setattr(allocation, "available_resources_per_node", self.available)
        monkeypatch.setattr(allocation, "internal_kv_get", self.kv)
        monkeypatch.setattr(allocation, "SETTLE_S", 0.0)
        monkeypatch.setattr(allocation, "REPORT_WAIT_S", 0.0)
        monkeypatch.setattr(cluster, "started_here", lambda: False)

    def nodes(self) -> list[dict[str, Any]]:
        live: list[dict[str, Any]] = [
            {"Alive": True, "NodeID": str(number), "Resources": {"CPU": c, "GPU": g}}
            for number, (c, g) in enumerate(self.total)
        ]
        return [*live, {"Alive": False, "NodeID": "", "Resources": {"CPU": 64.0, "GPU": 8.0}}]

    def available(self) -> dict[str, dict[str, float]]:
        nodes = self.total if self.free is None else self.free
        return {str(i): {"CPU": c, "GPU": g} for i, (c, g) in enumerate(nodes)}

    def kv(self, _: str) -> bytes | None:
        return json.dumps({"autoscaler_report": self.report}).encode() if self.report else None


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeCluster:
    return FakeCluster(monkeypatch)


@pytest.mark.parametrize(
    ("total", "free", "workers", "expected"),
    [
        ([(4, 0)], None, (1, 1), (1, 4)),
        ([(4, 0)], [(1, 0)], (1, 1), (1, 1)),
        ([(4, 0)], [(0, 0)], (1, 1), (1, 1)),
        ([(4, 0)], [(3, 0)], (1, 9), (3, 1)),
        ([(4, 0), (4, 0)], None, (2, 2), (2, 4)),
    ],
)
def test_actors_get_what_is_free(
    fake: FakeCluster,
    total: list[Node],
    free: list[Node] | None,
    workers: tuple[int, int],
    expected: tuple[int, int],
) -> None:
    fake.total, fake.free = total, free
    resources = actor_resources(workers, "cpu")
    assert (resources.workers, resources.cpus) == expected


@given(
    st.lists(st.integers(1, 8), min_size=1, max_size=4).flatmap(
        lambda cpus: st.tuples(
            st.just(cpus), st.tuples(*(st.integers(0, c) for c in cpus)), st.integers(1, sum(cpus))
        )
    )
)
def test_actors_fit_where_they_can(
    case: tuple[list[int], tuple[int, ...], int],
) -> None:
    """With one CPU free for each actor, they start at once."""
    cpus, free, workers = case
    with pytest.MonkeyPatch.context() as patch:
        fake = FakeCluster(patch)
        fake.total, fake.free = [(c, 0) for c in cpus], [(f, 0) for f in free]
        resources = actor_resources((workers, workers), "cpu")
    nodes = [NodeResources(f, 0) for f in free]
    if sum(free) >= workers:
        assert worker_slots(nodes, resources.cpus) >= workers


def test_a_training_takes_less_only_if_others_hold_the_rest(
    fake: FakeCluster, capsys: pytest.CaptureFixture[str]
) -> None:
    assert training_resources((1, 1), "cpu", 2) == WorkerResources(1, 0, 4)
    assert training_resources((1, 9), "cpu", 2) == WorkerResources(4, 0, 1)
    assert capsys.readouterr().out == ""
    fake.free = [(3, 0)]
    assert training_resources((1, 1), "cpu", 2) == WorkerResources(1, 0, 3)
    line = capsys.readouterr().out
    assert line == ("train: other commands use the cluster: 1 worker of 3 CPUs instead of 4 CPUs\n")
    fake.free = [(0, 0)]
    assert training_resources((1, 1), "cpu", 2) == WorkerResources(1, 0, 4), "it waits for all"


@pytest.mark.parametrize(
    ("nodes", "device", "workers", "each", "gpus"),
    [
        ([(8, 1), (8, 1)], "auto", 1, 2, 1),
        ([(8, 1), (8, 1)], "auto", 2, 2, 1),
        ([(8, 1), (8, 1)], "auto", 3, 2, 0),
        ([(8, 4), (8, 0)], "auto", 2, 2, 2),
        ([(8, 4)], "cuda", 4, 1, 1),
        ([(8, 4)], "cpu", 2, 2, 0),
    ],
)
def test_a_workers_gpus_are_in_one_node(
    fake: FakeCluster, nodes: list[Node], device: Any, workers: int, each: int, gpus: int
) -> None:
    fake.total = nodes
    assert choose_gpus(device, workers, each) == gpus


@pytest.mark.parametrize(
    ("nodes", "device", "workers", "message"),
    [
        (
            [(2, 0)],
            "auto",
            4,
            "--num-workers 4 --device auto: 4 workers of 1 CPU each don't fit into the cluster's "
            "nodes, which have 2 CPUs and 0 GPUs; give --num-workers 2",
        ),
        (
            [(8, 1), (8, 1)],
            "cuda",
            1,
            "--num-workers 1 --device cuda: 1 worker of 1 CPU and 2 GPUs don't fit into the "
            "cluster's nodes, which have 8 CPUs and 1 GPU; 8 CPUs and 1 GPU; give "
            "--gpus-per-worker 1 or --device cpu",
        ),
        (
            [(0, 0)],
            "cpu",
            1,
            "--num-workers 1 --device cpu: 1 worker of 1 CPU don't fit into the cluster's nodes, "
            "which have 0 CPUs and 0 GPUs; give the cluster a CPU",
        ),
    ],
)
def test_what_never_fits_is_one_line(
    fake: FakeCluster, nodes: list[Node], device: Any, workers: int, message: str
) -> None:
    fake.total = nodes
    with pytest.raises(UserError) as caught:
        choose_gpus(device, workers, 2)
    assert str(caught.value) == message


def test_a_cluster_that_can_grow_is_waited_for(fake: FakeCluster) -> None:
    fake.report = {"node_type_mapping": {"a1": "ray.head.default"}}
    assert choose_gpus("cuda", 1, 2) == 2
    assert choose_gpus("auto", 9, 2) == 0
    fake.report = None
    assert choose_gpus("cuda", 1, 2) == 2, "nothing is known yet"


def test_a_cluster_that_was_started_here_can_not_grow(
    fake: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake.report = None
    monkeypatch.setattr(cluster, "started_here", lambda: True)
    with pytest.raises(UserError, match="don't fit"):
        choose_gpus("cuda", 1, 2)


@pytest.mark.parametrize(
    ("workers", "gpus", "cpus"), [(1, 0, 4), (2, 0, 2), (3, 0, 2), (4, 0, 1), (9, 0, 1), (2, 2, 2)]
)
def test_the_most_cpus_of_each_worker(workers: int, gpus: int, cpus: int) -> None:
    nodes = [NodeResources(4, 4), NodeResources(2, 0)]
    assert most_cpus(nodes, workers, gpus) == cpus


@pytest.mark.parametrize(
    ("node", "workers_on_node", "expected"), [("0", 1, 4), ("1", 4, 16), ("1", 3, 21), ("0", 2, 4)]
)
def test_workers_on_gpus_decode_with_their_nodes_cpus(
    fake: FakeCluster,
    monkeypatch: pytest.MonkeyPatch,
    node: str,
    workers_on_node: int,
    expected: int,
) -> None:
    fake.total = [(4, 1), (64, 8)]
    context = SimpleNamespace(
        get_node_id=lambda: node, get_local_world_size=lambda: workers_on_node
    )
    monkeypatch.setattr(ray, "get_runtime_context", lambda: context)
    monkeypatch.setattr(ray.train, "get_context", lambda: context)
    assert decode_threads(4, torch.device("cuda", 0)) == expected
    assert decode_threads(4, torch.device("cpu")) == 4
