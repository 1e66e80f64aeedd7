"""Ray: the cluster to connect to, and how its resources are divided among workers."""

import logging
import os
import secrets
import socket
import sys
import threading
from typing import Any, NamedTuple

import ray
from ray._private import utils as ray_utils
from ray._private.services import find_bootstrap_address
from ray.exceptions import AuthenticationError

from alexnet.errors import UserError, one_line
from pipelines.console.redact import redacted
from pipelines.setting_types import Device, Workers

GIB = 2**30

KEEP_FREED_MEMORY = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(2**62),
    "MALLOC_ARENA_MAX": "1",
}
"""Environment variables of glibc for processes that run the network: freed blocks are reused.

Every training step allocates and frees the same few hundred megabytes of activations. By default
glibc maps each large block anew and the kernel clears its pages one by one: 55,000 page faults a
second were measured, a fifth of a step's time. An exported network on a CPU processes 93 crops a
second with the variables, 42 without.

They are read when a process starts. mallopt(3) does not reach the thread in which Ray Train runs
the training, since that has a heap of its own. Other C libraries ignore them.
"""

_CONNECTING = threading.Lock()
"""Held while a thread connects; another thread waits and then finds Ray initialized."""


def connect() -> None:
    """Connect to the cluster that RAY_ADDRESS or ``ray start`` names, else start one here.

    A cluster that is started here listens on loopback only and has no dashboard, which saves half
    a gigabyte and some seconds; ``ray start --head`` starts one with a dashboard.

    Raises:
        UserError: RAY_ADDRESS names a cluster that does not answer or refuses the connection.
    """
    with _CONNECTING:
        if not ray.is_initialized():
            _join_or_start()


def _join_or_start() -> None:
    address = _running_cluster()
    # The workers' lines for the user come through ``console.worker_log``.
    quiet = {"logging_level": logging.ERROR, "log_to_driver": False}
    # Ray keeps the command line in its table of jobs, and shows it.
    command_line = redacted(ray_utils.get_entrypoint_name())
    ray_utils.get_entrypoint_name = lambda: command_line
    if address:
        try:
            ray.init(address=address, **quiet)
        except RuntimeError as error:
            if "Version mismatch" not in str(error):
                raise
            raise UserError(
                f"the Ray cluster at {address} can't be joined ({one_line(error)}); install the "
                "same versions on all machines, or stop that cluster"
            ) from error
        except (ConnectionError, AuthenticationError) as error:
            raise UserError(
                f"the Ray cluster at {address} can't be joined ({one_line(error)}); if it "
                "requires a token, which newer Ray versions do where ~/.ray/auth_token exists, "
                "`export RAY_AUTH_MODE=token`"
            ) from error
    else:
        # Otherwise Ray writes a token to the home directory; then a later `ray start --head`
        # requires it and a plain `ray job submit` is refused.
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
        # This machine is not preemptible, and watching for preemption takes one more process.
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
        ray.init(
            address="local",
            include_dashboard=False,
            object_store_memory=GIB,
            _node_ip_address="127.0.0.1",
            **quiet,
        )
    logging.getLogger("ray.data").setLevel(logging.ERROR)


def _running_cluster() -> str | None:
    """The address of a running cluster, if there is one.

    Ray itself would wait for minutes for a cluster that died without ``ray stop``.
    """
    named = os.environ.get("RAY_ADDRESS")
    if named:
        if named in ("auto", "local"):
            return named
        host, _, port = named.rpartition(":")
        if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
            raise UserError(
                f"RAY_ADDRESS={named}: not the host and port of a Ray cluster, such as "
                "10.0.0.5:6379; correct or unset RAY_ADDRESS"
            )
        if not _answers(named):
            raise UserError(
                f"RAY_ADDRESS={named}: no Ray cluster answers there; start one with "
                "`ray start --head` or unset RAY_ADDRESS"
            )
        return named
    started = find_bootstrap_address(None)
    return started if started and _answers(started) else None


def _answers(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
    except OSError:
        return False
    return True


class WorkerResources(NamedTuple):
    """The number of workers, and the resources of each."""

    workers: int
    gpus: int
    cpus: int


def allocate_workers(
    workers: Workers, device: Device, gpus_per_worker: int, reserve: int = 0
) -> WorkerResources:
    """Divide the cluster among as many workers of a range as fit now.

    Args:
        workers: the minimum and the maximum.
        device: as for ``choose_gpus``.
        gpus_per_worker: GPUs that a worker can use.
        reserve: CPUs of each node to leave to other tasks.

    Raises:
        UserError: ``cuda`` is requested and the cluster has too few GPUs for the minimum.
    """
    count = choose_workers(workers, device, gpus_per_worker)
    gpus = choose_gpus(device, count, gpus_per_worker)
    return WorkerResources(count, gpus, cpus_per_worker(count, gpus, reserve))


def elastic_resources(workers: Workers, device: Device, gpus_per_worker: int) -> WorkerResources:
    """The same for a job whose number of workers follows the cluster.

    The resources of a worker do not depend on what is free at the moment, only on the nodes.

    Raises:
        UserError: ``cuda`` is requested and the cluster has too few GPUs for the minimum.
    """
    minimum, maximum = workers
    gpus = choose_gpus(device, minimum, gpus_per_worker)
    count = max(minimum, min(maximum, worker_slots(1, gpus)))
    return WorkerResources(count, gpus, cpus_per_worker(count, gpus))


def choose_gpus(device: Device, workers: int, gpus_per_worker: int) -> int:
    """The number of GPUs of each worker, 0 for training on CPUs.

    ``auto`` takes ``gpus_per_worker`` if the cluster has that many for every worker, one if it has
    one for every worker, else none. All GPUs of a worker are in one node.

    Raises:
        UserError: ``cuda`` is requested and the cluster has too few GPUs.
    """
    if device == "cpu":
        return 0
    if worker_slots(1, gpus_per_worker) >= workers:
        return gpus_per_worker
    if device == "cuda":
        by_node = ", ".join(f"{node.get('GPU', 0):g}" for node in _nodes())
        raise UserError(
            f"--device cuda: {workers} workers of {gpus_per_worker} GPUs need "
            f"{workers * gpus_per_worker}, each worker's in one node, and the cluster's nodes have "
            f"{by_node}; give fewer --num-workers, --gpus-per-worker 1 or --device cpu"
        )
    return 1 if worker_slots(1, 1) >= workers else 0


def choose_workers(workers: Workers, device: Device, gpus_per_worker: int) -> int:
    """How many workers of a range fit into the free resources; a fixed number stays as it is.

    Args:
        workers: the minimum and the maximum.
        device: as for ``choose_gpus``.
        gpus_per_worker: GPUs that a worker can use.

    Raises:
        UserError: ``cuda`` is requested and the cluster has too few GPUs for the minimum.
    """
    minimum, maximum = workers
    if minimum == maximum:
        return maximum
    gpus = choose_gpus(device, minimum, gpus_per_worker)
    free = ray.available_resources()
    required = {"CPU": 1} | ({"GPU": gpus} if gpus else {})
    fitting = min(int(free.get(name, 0) // count) for name, count in required.items())
    return max(minimum, min(maximum, fitting, worker_slots(1, gpus)))


def cpus_per_worker(workers: int, gpus: int = 0, reserve: int = 0) -> int:
    """The most CPUs that each worker can have when all run at once, at least 1.

    Args:
        workers: how many must fit; all CPUs of a worker are in one node.
        gpus: that each worker needs beside its CPUs.
        reserve: CPUs of each node to leave to other tasks.
    """
    most = int(max((node.get("CPU", 0) for node in _nodes()), default=1))
    fitting = (c for c in range(most, 1, -1) if worker_slots(c, gpus, reserve) >= workers)
    return next(fitting, 1)


def _nodes() -> list[dict[str, Any]]:
    """The resources of each live node."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def worker_slots(cpus: int, gpus: int = 0, reserve: int = 0) -> int:
    """How many workers of so many CPUs and GPUs fit into the nodes when nothing else runs."""
    return sum(
        min(
            int((node.get("CPU", 0) - reserve) // cpus),
            int(node.get("GPU", 0) // gpus) if gpus else sys.maxsize,
        )
        for node in _nodes()
    )
