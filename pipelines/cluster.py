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
    quiet = {"logging_level": logging.WARNING, "log_to_driver": True}
    try:
        ray.init(address=os.environ.get("RAY_ADDRESS", "auto"), **quiet)
    except ConnectionError as error:
        if "RAY_ADDRESS" in os.environ:
            raise UserError(
                f"RAY_ADDRESS={os.environ['RAY_ADDRESS']}: no Ray cluster answers there; "
                "start one with `ray start --head` or unset it"
            ) from error
        ray.init(include_dashboard=False, object_store_memory=GIB, **quiet)


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


def cpus_for(workers: int, reserve: float = 0) -> int:
    """CPUs for each worker when all workers share the cluster's, at least 1."""
    return max(1, int((ray.cluster_resources()["CPU"] - reserve) // workers))
