"""A look at the devices that training would get: a Ray Train worker measures its own.

The worker has the resources of one that trains, so what it sees is what training would see: two
GPUs of its own, one, or none. Images and shards are not needed, and nothing is left behind.
"""

import math
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

import ray
import torch
from ray.train import LoggingConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer, get_devices

from alexnet.diagnostics.copies import DeviceCopy
from alexnet.diagnostics.devices import CLASSES, DeviceBenchmark, DeviceInfo
from alexnet.diagnostics.equivalence import TOLERANCE, Comparison, compare
from pipelines import cluster
from pipelines.console.cli import CheckFailedError
from pipelines.console.worker_log import worker_log
from pipelines.settings import TrainSettings
from pipelines.stages import Figures
from pipelines.training.state import chosen_recipe

GIB, MB, GB = 2**30, 10**6, 10**9

Say = Callable[[str], None]


class Answer:
    """A Ray actor that brings the figures to the driver."""

    def __init__(self) -> None:
        self.figures: Figures = {}

    def give(self, figures: Figures) -> None:
        """Keep them."""
        self.figures = figures

    def take(self) -> Figures:
        """What was given."""
        return self.figures


def run(
    settings: TrainSettings, scaling: Callable[[cluster.WorkerResources], ScalingConfig]
) -> Figures:
    """Measure, print in words, return the figures.

    Args:
        settings: as for training.
        scaling: training's own, of the workers' share.

    Raises:
        UserError: there are too few GPUs.
        CheckFailedError: the devices compute something else than one device does.
    """
    begun = time.monotonic()
    cluster.connect()
    share = cluster.allocate_workers(settings.num_workers, settings.device, settings.gpus_wanted)
    answer = ray.remote(num_cpus=0)(Answer).remote()
    config = {"settings": settings.model_dump(), "threads": share.cpus, "answer": answer}
    with tempfile.TemporaryDirectory(prefix="alexnet-check-") as folder, worker_log() as log:
        TorchTrainer(
            work,
            train_loop_config=config | {"worker_log": log},
            scaling_config=scaling(share._replace(workers=1)),
            run_config=RunConfig(
                name="check", storage_path=folder, logging_config=LoggingConfig(log_level="ERROR")
            ),
        ).fit()
        figures: Figures = ray.get(answer.take.remote())
    figures["seconds"] = round(time.monotonic() - begun, 1)
    if not figures["passed"]:
        raise CheckFailedError(
            "the devices give other results than one device alone; see the lines above", figures
        )
    return figures


def work(config: Mapping[str, Any]) -> None:
    """The Ray Train loop. ``config``: settings, threads, worker_log, answer."""
    torch.set_num_threads(config["threads"])
    settings = TrainSettings.model_validate(config["settings"])

    def say(line: str) -> None:
        config["worker_log"].emit.remote(f"check: {line}")

    figures = look(settings, get_devices(), say)
    ray.get(config["answer"].give.remote(figures))


def look(settings: TrainSettings, devices: list[torch.device], say: Say) -> Figures:
    """Everything about some devices, in words and figures."""
    recipe = chosen_recipe(settings)
    images = math.ceil(recipe.batch_size / settings.num_workers[0])
    machine = DeviceBenchmark(
        recipe,
        devices,
        images,
        bf16=settings.precision == "bf16",
        channels_last=settings.channels_last == "on",
    )
    places = machine.device_infos()
    for place in places:
        say(_about(place))
    peers = machine.peer_access()
    if peers is not None:
        say(
            "peer-to-peer: "
            + (
                "the GPUs copy to each other directly"
                if peers
                else "no, copies go by way of the CPU"
            )
        )
    copies = machine.forward_copies()
    times = [machine.copy_seconds(copy) for copy in copies]
    forward = sum(copy.bytes for copy in copies)
    both = sum(copy.bytes for copy in machine.step_copies())
    if copies:
        say(f"copies in a forward pass of {images} images, {forward / MB:,.1f} MB together:")
        for copy, seconds in zip(copies, times, strict=True):
            say(_about_copy(copy, seconds))
        say(f"their gradients go the other way, {(both - forward) / MB:,.1f} MB together")
    else:
        say("one device: nothing is copied, and no towers can work at the same time")
    step = machine.step_times()
    say(
        f"an update of {images} images takes {_time(step.step)}, "
        f"{images / step.step:,.0f} images/s (images lie ready; none are read)"
    )
    for device, size in step.peak.items():
        say(f"{device}: at most {size / GIB:,.2f} GiB are in use in an update")
    if step.together and step.overlap:
        say(_about_overlap(step.alone, step.together, step.overlap))
    comparison = compare(recipe, devices, CLASSES)
    say(_about_comparison(comparison, devices[0]))
    return {
        "stage": "train",
        "check_devices": True,
        "passed": comparison.passed,
        "images": images,
        "devices": [asdict(place) for place in places],
        "peer_access": peers,
        "copies": [
            {
                "layer": copy.layer,
                "source": str(copy.source),
                "target": str(copy.target),
                "bytes": copy.bytes,
                "seconds": seconds,
                "bytes_per_second": round(copy.bytes / seconds),
            }
            for copy, seconds in zip(copies, times, strict=True)
        ],
        "forward_bytes": forward,
        "backward_bytes": both - forward,
        "step_seconds": step.step,
        "images_per_second": round(images / step.step, 1),
        "tower_seconds": step.alone,
        "together_seconds": step.together,
        "overlap": step.overlap,
        "peak_bytes": step.peak,
        "logits_difference": comparison.logits,
        "gradients_difference": comparison.gradients,
        "tolerance": TOLERANCE,
    }


def _about(place: DeviceInfo) -> str:
    memory = "" if place.memory is None else f", {place.memory / GIB:,.1f} GiB"
    held = [f"tower {number}" for number in place.towers] + ["fc8"] * place.last_layer
    return (
        f"{place.device} ({place.name}{memory}) holds {', '.join(held)}: "
        f"{place.parameters:,} parameters, {place.bytes / MB:,.1f} MB"
    )


def _about_copy(copy: DeviceCopy, seconds: float) -> str:
    return (
        f"  to {copy.layer:<5} {copy.source} → {copy.target} {copy.bytes / MB:8,.2f} MB "
        f"in {_time(seconds)}, {copy.bytes / seconds / GB:,.1f} GB/s"
    )


def _about_overlap(alone: list[float], together: float, overlap: float) -> str:
    towers = ", ".join(f"tower {i} alone {_time(seconds)}" for i, seconds in enumerate(alone))
    return (
        f"forward and backward: {towers}, the whole network {_time(together)}: overlap "
        f"{overlap:.2f} ({len(alone)} would be perfect, 1 is one after the other)"
    )


def _about_comparison(comparison: Comparison, first: torch.device) -> str:
    return (
        f"against one column on {first}, in float32: logits differ by {comparison.logits:.1e}, "
        f"gradients by at most {comparison.gradients:.1e} ({comparison.layer}), allowed is "
        f"{TOLERANCE:.0e}: {'PASS' if comparison.passed else 'FAIL'}"
    )


def _time(seconds: float) -> str:
    return f"{seconds:,.2f} s" if seconds >= 1 else f"{seconds * 1000:,.3g} ms"
