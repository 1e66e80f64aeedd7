"""``--check-devices``: a Ray Train worker measures its own devices.

The worker has the resources of one that trains: two GPUs of its own, one, or none. No images and
no shards are needed, and no files are left.
"""

import math
import tempfile
import time
from collections.abc import Mapping
from typing import Any

import torch
from ray.train import LoggingConfig, RunConfig
from ray.train.torch import TorchTrainer, get_devices

from alexnet.diagnostics.devices import CLASSES, DeviceBenchmark
from alexnet.diagnostics.equivalence import compare
from pipelines import cluster
from pipelines.clusters.allocation import training_resources
from pipelines.console.cli import CheckFailedError
from pipelines.console.interrupt import run_in_thread
from pipelines.console.log import stage_logger
from pipelines.settings import TrainSettings
from pipelines.training.device_report import DeviceCheckResult, DeviceReport
from pipelines.training.job import TORCH_CONFIG, scaling_config
from pipelines.training.recipe import resolve_recipe
from pipelines.training.state import execution_of


def run(settings: TrainSettings) -> DeviceCheckResult:
    """Measure, log the report, return it.

    Args:
        settings: as for training.

    Raises:
        UserError: there are too few GPUs.
        CheckFailedError: the devices compute something else than one device does.
    """
    started = time.monotonic()
    log = stage_logger("check")
    log.info("measuring the devices, about a minute")
    cluster.connect()
    resources = training_resources(settings.num_workers, settings.device, settings.gpus_wanted)
    with tempfile.TemporaryDirectory(prefix="alexnet-check-") as folder:
        report: DeviceReport = run_in_thread(
            TorchTrainer(
                measure_on_worker,
                train_loop_config={"settings": settings, "threads": resources.threads},
                torch_config=TORCH_CONFIG,
                scaling_config=scaling_config((1, 1), resources),
                run_config=RunConfig(
                    name="check",
                    storage_path=folder,
                    logging_config=LoggingConfig(log_level="ERROR"),
                ),
            ).fit,
            "ray-train",
        ).return_value
    for line in report.lines():
        log.info("%s", line)
    result = DeviceCheckResult(report=report, seconds=round(time.monotonic() - started, 1))
    if not result.passed:
        raise CheckFailedError(
            "failed: the devices compute other results than one device alone; see the lines above",
            result,
        )
    return result


def measure_on_worker(config: Mapping[str, Any]) -> DeviceReport:
    """The Ray Train loop. ``config``: ``settings`` and ``threads``."""
    torch.set_num_threads(config["threads"])
    return measure(config["settings"], get_devices())


def measure(settings: TrainSettings, devices: list[torch.device]) -> DeviceReport:
    """Everything about some devices.

    Args:
        settings: as for training.
        devices: one, or one for each tower.
    """
    recipe = resolve_recipe(settings)
    images = math.ceil(recipe.batch_size / settings.num_workers[0])
    benchmark = DeviceBenchmark(recipe, devices, images, execution_of(settings))
    copies = benchmark.forward_copies()
    forward_bytes = sum(copy.bytes for copy in copies)
    return DeviceReport(
        images=images,
        not_compiled=benchmark.not_compiled,
        devices=benchmark.device_infos(),
        peer_access=benchmark.peer_access(),
        copies=[(copy, benchmark.copy_seconds(copy)) for copy in copies],
        backward_bytes=sum(copy.bytes for copy in benchmark.step_copies()) - forward_bytes,
        times=benchmark.step_times(),
        comparison=compare(recipe, devices, CLASSES),
    )
