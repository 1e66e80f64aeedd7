"""Joining a Ray cluster, or starting one on this machine."""

import logging
import os

import ray

from alexnet.errors import UserError
from pipelines.settings import Device

GIB = 2**30


def connect() -> None:
    """Join the cluster that RAY_ADDRESS or ``ray start`` names, else start one on this machine.

    A cluster of our own listens on loopback only and has no dashboard, which saves half a
    gigabyte and some seconds; ``ray start --head`` gives one with a dashboard.
    """
    if ray.is_initialized():
        return
    # What workers have to say to a person comes through ``terminal``.
    quiet = {"logging_level": logging.ERROR, "log_to_driver": False}
    try:
        ray.init(address=os.environ.get("RAY_ADDRESS", "auto"), **quiet)
    except ConnectionError as error:
        if "RAY_ADDRESS" in os.environ:
            raise UserError(
                f"RAY_ADDRESS={os.environ['RAY_ADDRESS']}: no Ray cluster answers there; "
                "start one with `ray start --head` or unset it"
            ) from error
        ray.init(include_dashboard=False, object_store_memory=GIB, **quiet)
    logging.getLogger("ray.data").setLevel(logging.ERROR)


def choose_gpus(device: Device, workers: int, each: int) -> int:
    """GPUs for each worker, 0 for none.

    ``auto`` takes ``each`` if the cluster has that many for every worker, one if it has one for
    every worker, else none.

    Raises:
        UserError: ``cuda`` is asked for and the cluster has too few GPUs.
    """
    present = int(ray.cluster_resources().get("GPU", 0))
    if device == "cpu":
        return 0
    if present >= workers * each:
        return each
    if device == "cuda":
        raise UserError(
            f"--device cuda: {workers} workers of {each} GPUs need {workers * each}, the cluster "
            f"has {present}; give fewer --num-workers, --gpus-per-worker 1 or --device cpu"
        )
    return 1 if present >= workers else 0


def cpus_for(workers: int, gpus: int = 0, reserve: int = 0) -> int:
    """The most CPUs that each worker can have when all run at once, at least 1.

    Args:
        workers: how many must find a place; one worker lies on one node.
        gpus: that each worker needs beside its CPUs.
        reserve: CPUs of each node to leave to others.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    most = int(max((node.get("CPU", 0) for node in nodes), default=1))

    def places(cpus: int) -> int:
        return sum(
            min(
                int((node.get("CPU", 0) - reserve) // cpus),
                int(node.get("GPU", 0) // gpus) if gpus else workers,
            )
            for node in nodes
        )

    return next((cpus for cpus in range(most, 1, -1) if places(cpus) >= workers), 1)
