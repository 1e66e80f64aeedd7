"""How a Ray cluster's CPUs and GPUs are divided among workers, and whether workers can fit at all.

A worker has all its CPUs and GPUs in one node. A number of workers is the least and the most; a
fixed number is both.
"""

import dataclasses
import json
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import ray
from ray._private import ray_constants
from ray._private.state import available_resources_per_node
from ray.experimental.internal_kv import _internal_kv_get as internal_kv_get

from alexnet.errors import UserError
from pipelines import cluster
from pipelines.configuration.setting_types import Device, Workers
from pipelines.console.log import stage_logger

SETTLE_S = 10.0
"""Seconds to wait for resources that a command which has just ended may still hold."""

REPORT_WAIT_S = 15.0
"""Seconds to wait for the first report of a new cluster's autoscaler."""


@dataclass(frozen=True, slots=True)
class NodeResources:
    """CPUs and GPUs of a node."""

    cpus: float
    gpus: float


@dataclass(frozen=True, slots=True)
class WorkerResources:
    """A number of workers, and the resources of each."""

    workers: int
    gpus: int
    """0 for work on CPUs."""
    cpus: int

    @property
    def threads(self) -> int:
        """For a worker's computation."""
        return self.cpus

    def __str__(self) -> str:
        gpus = f" and {_count(self.gpus, 'GPU')}" if self.gpus else ""
        each = " each" if self.workers > 1 else ""
        return f"{_count(self.workers, 'worker')} of {_count(self.cpus, 'CPU')}{gpus}{each}"


def _count(number: float, unit: str) -> str:
    return f"{number:g} {unit}" + ("" if number == 1 else "s")


def actor_resources(
    workers: Workers, device: Device, *, gpus_per_worker: int = 1
) -> WorkerResources:
    """Divide what is free among actors that hold a model.

    If the least number does not fit into what is free, each requests one CPU and waits.

    Args:
        workers: the least and the most.
        device: as for ``choose_gpus``.
        gpus_per_worker: GPUs that an actor can use.

    Raises:
        UserError: so many can't ever fit.
    """
    least, most = workers
    gpus = choose_gpus(device, least, gpus_per_worker)
    free = free_nodes()
    count = max(least, min(most, worker_slots(free, 1, gpus)))
    return WorkerResources(count, gpus, most_cpus(free, count, gpus))


def training_resources(workers: Workers, device: Device, gpus_per_worker: int) -> WorkerResources:
    """Divide the nodes among the workers of a training.

    What is free at the moment does not matter if all of it is free within ``SETTLE_S``. After that
    a worker gets as many CPUs as are free, if each worker can have one, and this is logged.

    Raises:
        UserError: so many can't ever fit.
    """
    least, most = workers
    gpus = choose_gpus(device, least, gpus_per_worker)
    nodes = total_nodes()
    count = max(least, min(most, worker_slots(nodes, 1, gpus)))
    wanted = WorkerResources(count, gpus, most_cpus(nodes, count, gpus))
    end = time.monotonic() + SETTLE_S
    while worker_slots(free_nodes(), wanted.cpus, gpus) < least:
        if time.monotonic() > end:
            return _as_free(wanted, least)
        time.sleep(0.5)
    return wanted


def _as_free(wanted: WorkerResources, least: int) -> WorkerResources:
    """The same with fewer CPUs for each worker, if that helps."""
    free = free_nodes()
    if worker_slots(free, 1, wanted.gpus) < least:
        return wanted
    fewer = dataclasses.replace(wanted, cpus=most_cpus(free, least, wanted.gpus))
    stage_logger("train").info(
        "other commands use the cluster: %s instead of %s", fewer, _count(wanted.cpus, "CPU")
    )
    return fewer


def choose_gpus(device: Device, workers: int, gpus_per_worker: int) -> int:
    """The number of GPUs of each worker, 0 for work on CPUs.

    ``auto`` takes ``gpus_per_worker`` if the cluster has that many for every worker, one if it has
    one for every worker, else none.

    Raises:
        UserError: the cluster has too few CPUs or GPUs, and can't get more.
    """
    nodes = total_nodes()
    choices = {"cpu": [0], "cuda": [gpus_per_worker], "auto": [gpus_per_worker, 1, 0]}[device]
    for gpus in choices:
        if worker_slots(nodes, 1, gpus) >= workers:
            return gpus
    if can_grow():
        return choices[-1]
    wanted = WorkerResources(workers, choices[-1], 1)
    smaller = worker_slots(nodes, 1, choices[-1])
    helps = [f"--num-workers {smaller}"] if smaller else []
    if device == "cuda":
        helps += ["--gpus-per-worker 1"] * (gpus_per_worker > 1) + ["--device cpu"]
    raise UserError(
        f"--num-workers {workers} --device {device}: {wanted} don't fit into {describe(nodes)}; "
        f"give {' or '.join(helps) or 'the cluster a CPU'}"
    )


def can_grow() -> bool:
    """Whether an autoscaler may add nodes to the cluster.

    Without one, Ray reports every node as a type of its own, named after the node. A new cluster
    has no report for some seconds; if there is none after ``REPORT_WAIT_S``, nodes may be added.
    """
    if cluster.started_here():
        return False
    end = time.monotonic() + REPORT_WAIT_S
    while (types := _node_types()) is None:
        if time.monotonic() > end:
            return True
        time.sleep(0.5)
    return any(kind != f"node_{node}" for node, kind in types.items())


def _node_types() -> dict[str, str] | None:
    """The type of each node by its id, from the autoscaler's report; None if there is none yet."""
    text = internal_kv_get(ray_constants.DEBUG_AUTOSCALING_STATUS)
    report = json.loads(text).get("autoscaler_report") if text else None
    return (report.get("node_type_mapping") or {}) if report else None


def total_nodes() -> list[NodeResources]:
    """All resources of each live node."""
    return [_resources(node["Resources"]) for node in ray.nodes() if node["Alive"]]


def own_node() -> NodeResources:
    """All resources of the node on which this process of Ray runs."""
    own = ray.get_runtime_context().get_node_id()
    return next(_resources(node["Resources"]) for node in ray.nodes() if node["NodeID"] == own)


def free_nodes() -> list[NodeResources]:
    """The free resources of each live node."""
    return [_resources(free) for free in available_resources_per_node().values()]


def _resources(values: dict[str, Any]) -> NodeResources:
    return NodeResources(values.get("CPU", 0), values.get("GPU", 0))


def most_cpus(nodes: Iterable[NodeResources], workers: int, gpus: int) -> int:
    """The most CPUs that each of some workers can have, at least 1."""
    nodes = list(nodes)
    most = int(max((node.cpus for node in nodes), default=1))
    fitting = (c for c in range(most, 1, -1) if worker_slots(nodes, c, gpus) >= workers)
    return next(fitting, 1)


def worker_slots(nodes: Iterable[NodeResources], cpus: int, gpus: int = 0) -> int:
    """How many workers fit into nodes.

    Args:
        nodes: their resources.
        cpus: of each worker.
        gpus: of each worker.
    """
    return sum(
        min(
            int(node.cpus // cpus),
            int(node.gpus // gpus) if gpus else sys.maxsize,
        )
        for node in nodes
    )


def describe(nodes: Iterable[NodeResources]) -> str:
    """The nodes in words, for messages."""
    by_node = [f"{_count(node.cpus, 'CPU')} and {_count(node.gpus, 'GPU')}" for node in nodes]
    return f"the cluster's nodes, which have {'; '.join(by_node)}"


def request_in_words(wanted: WorkerResources) -> str:
    """Some workers and what is free, for a line about waiting for them."""
    total, free = total_nodes(), free_nodes()
    words = [
        f"{_count(sum(getattr(node, field) for node in total), unit)}, "
        f"{sum(getattr(node, field) for node in free):g} free"
        for field, unit in (("cpus", "CPU"), ("gpus", "GPU"))
    ]
    return f"{wanted}; the cluster has {', and '.join(words if wanted.gpus else words[:1])}"
