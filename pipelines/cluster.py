"""Joining a Ray cluster, or starting one on this machine."""

import logging
import os
import re
import secrets
import socket
import sys
import threading
from collections.abc import Mapping
from typing import Any, NamedTuple

import ray
from ray._private.services import find_bootstrap_address
from ray.exceptions import AuthenticationError

from alexnet.errors import UserError, one_line
from pipelines.settings import Device, Workers

GIB = 2**30

_CONNECTING = threading.Lock()
"""Whoever comes second waits until the first is done."""

_HOST_AND_PORT = re.compile(r".+:\d+")


def connect() -> None:
    """Join the cluster that RAY_ADDRESS or ``ray start`` names, else start one on this machine.

    A cluster of our own listens on loopback only and has no dashboard, which saves half a
    gigabyte and some seconds; ``ray start --head`` gives one with a dashboard.

    Raises:
        UserError: RAY_ADDRESS names a cluster that does not answer or lets nobody in.
    """
    with _CONNECTING:
        if not ray.is_initialized():
            _join_or_start()


def _join_or_start() -> None:
    address = _running_cluster()
    # What workers have to say to a person comes through ``terminal``.
    quiet = {"logging_level": logging.ERROR, "log_to_driver": False}
    if address:
        try:
            ray.init(address=address, **quiet)
        except (ConnectionError, AuthenticationError) as error:
            raise UserError(
                f"the Ray cluster at {address} can't be joined ({one_line(error)}); if it "
                "asks for a token, which newer versions of Ray do where ~/.ray/auth_token exists, "
                "`export RAY_AUTH_MODE=token`"
            ) from error
    else:
        # Ray would leave a token in the home directory, with which a later `ray start --head`
        # asks for it and a plain `ray job submit` no longer gets in.
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
        # Nobody takes this machine back with a warning, and to watch for it is a process more.
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
    """The cluster to join, if there is one.

    Ray itself would wait for minutes for a cluster that died without ``ray stop``.
    """
    named = os.environ.get("RAY_ADDRESS")
    if named:
        if _HOST_AND_PORT.fullmatch(named) and not _answers(named):
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
    """How many workers there are, and what each of them has to itself."""

    workers: int
    gpus: int
    cpus: int


def allocate_workers(
    workers: Workers, device: Device, each: int, reserve: int = 0
) -> WorkerResources:
    """Divide the cluster among as many workers of a range as find a place now.

    Args:
        workers: the least and the most.
        device: as for ``choose_gpus``.
        each: GPUs that a worker wants.
        reserve: CPUs of each node to leave to others.

    Raises:
        UserError: GPUs are asked for and the cluster has too few for the least number.
    """
    count = choose_workers(workers, device, each)
    gpus = choose_gpus(device, count, each)
    return WorkerResources(count, gpus, cpus_per_worker(count, gpus, reserve))


def choose_gpus(device: Device, workers: int, each: int) -> int:
    """GPUs for each worker, 0 for none.

    ``auto`` takes ``each`` if the cluster has that many for every worker, one if it has one for
    every worker, else none. A worker's GPUs are those of one node.

    Raises:
        UserError: ``cuda`` is asked for and the cluster has too few GPUs.
    """
    if device == "cpu":
        return 0
    if worker_slots(1, each) >= workers:
        return each
    if device == "cuda":
        by_node = ", ".join(f"{node.get('GPU', 0):g}" for node in _nodes())
        raise UserError(
            f"--device cuda: {workers} workers of {each} GPUs need {workers * each}, each worker's "
            f"in one node, and the cluster's nodes have {by_node}; give fewer --num-workers, "
            "--gpus-per-worker 1 or --device cpu"
        )
    return 1 if worker_slots(1, 1) >= workers else 0


def choose_workers(
    workers: Workers, device: Device, each: int, mine: Mapping[str, float] | None = None
) -> int:
    """How many workers of a range find a place in what is free now; a fixed number as it is.

    Args:
        workers: the least and the most.
        device: as for ``choose_gpus``.
        each: GPUs that a worker wants.
        mine: resources in use that would be free, by name.

    Raises:
        UserError: GPUs are asked for and the cluster has too few for the least number.
    """
    least, most = workers
    if least == most:
        return most
    gpus = choose_gpus(device, least, each)
    free, held = ray.available_resources(), mine or {}
    wanted = {"CPU": 1} | ({"GPU": gpus} if gpus else {})
    room = min(
        int((free.get(name, 0) + held.get(name, 0)) // count) for name, count in wanted.items()
    )
    return max(least, min(most, room, worker_slots(1, gpus)))


def cpus_per_worker(workers: int, gpus: int = 0, reserve: int = 0) -> int:
    """The most CPUs that each worker can have when all run at once, at least 1.

    Args:
        workers: how many must find a place; one worker lies on one node.
        gpus: that each worker needs beside its CPUs.
        reserve: CPUs of each node to leave to others.
    """
    most = int(max((node.get("CPU", 0) for node in _nodes()), default=1))
    fitting = (c for c in range(most, 1, -1) if worker_slots(c, gpus, reserve) >= workers)
    return next(fitting, 1)


def _nodes() -> list[dict[str, Any]]:
    """The resources of each node that is alive."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def worker_slots(cpus: int, gpus: int = 0, reserve: int = 0) -> int:
    """How many workers of so many CPUs and GPUs the nodes have room for when nothing else runs."""
    return sum(
        min(
            int((node.get("CPU", 0) - reserve) // cpus),
            int(node.get("GPU", 0) // gpus) if gpus else sys.maxsize,
        )
        for node in _nodes()
    )
