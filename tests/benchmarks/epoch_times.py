"""PREDICTION, not a measurement: time of an epoch of ILSVRC2012 on workers of two GPUs.

    python tests/benchmarks/epoch_times.py --step-seconds 0.045

What goes in is measured elsewhere: a step's time on one pair of GPUs (``train.py --check-devices``
prints it) and how many images a second one CPU core decodes (``ingest.py``, uncropped: 6,010 on two
cores, hence the default; a GPU crops them itself). No GPU was at hand; .045 s is an assumption:
128 images of 4.3 GFLOP, forward and backward, at 30 % of the 19.5 TFLOP/s in float32 that each of
two A100 has. What comes out is a model, written down here:

    compute   the step of a worker's share of the batch, in proportion to its images
    copies    what crosses between the towers, forward and again backward (paper, section 3.5):
              floats for each image into conv3, fc6, fc7 and fc8, over the link of the pair
    reduce    ring all-reduce of all gradients: 2 (W - 1) / W · 4 bytes · parameters / bandwidth,
              half as much with --gradient-compression; DDP hides up to HIDDEN of the backward pass
    ingest    images a second that the CPUs of a worker can prepare; the slower of both counts

Contention, stragglers, validation and checkpoints are left out.
"""

import argparse
import json
from dataclasses import asdict, dataclass

from alexnet.model.towers import AlexNet
from alexnet.recipes import SOURCE145

IMAGES = 1_281_167
CROSSING = 2 * (128 * 13 * 13 + 4608 + 2048) + 2048
"""Floats of one image that cross forward: both ways into conv3, fc6 and fc7, one way into fc8."""
BACKWARD = 2 / 3
"""Share of a step that the backward pass takes: two products for each one forward."""
HIDDEN = 0.8
"""Share of the backward pass during which gradients are ready to be sent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceBenchmark:
    """What the prediction rests on."""

    step_seconds: float
    """A step of ``measured_batch`` images on one pair of GPUs, without copies."""
    measured_batch: int
    link: float
    """Bytes a second between the GPUs of a pair."""
    network: float
    """Bytes a second between workers."""
    decode_rate: float
    """Images a second and core, from JPEG shards."""
    cores: int
    """CPU cores of a worker."""
    gradient_bytes: int


def epoch_seconds(
    machine: DeviceBenchmark, workers: int, batch: int, parameters: int
) -> dict[str, float]:
    """The parts of an epoch's time, in seconds; ``total`` is what remains when they overlap."""
    share = batch / workers
    steps = IMAGES / batch
    compute = machine.step_seconds * share / machine.measured_batch
    copies = 2 * 4 * CROSSING * share / machine.link
    ring = 2 * (workers - 1) / workers * machine.gradient_bytes * parameters / machine.network
    shown = max(0.0, ring - HIDDEN * BACKWARD * compute)
    ingest = share / (machine.decode_rate * machine.cores)
    step = max(compute + copies + shown, ingest)
    return {
        "compute": steps * compute,
        "copies": steps * copies,
        "all_reduce_not_hidden": steps * shown,
        "ingest": steps * ingest,
        "total": steps * step,
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--step-seconds", type=float, required=True)
    defaults = {
        "link": 25e9,
        "network": 12.5e9,
        "decode-rate": 3000.0,
    }
    for name, default in defaults.items():
        parser.add_argument(f"--{name}", type=float, default=default)
    whole = {"measured-batch": 128, "cores": 16, "gradient-bytes": 4, "batch-per-worker": 128}
    for name, number in whole.items():
        parser.add_argument(f"--{name}", type=int, default=number)
    given = vars(parser.parse_args())
    each = given.pop("batch_per_worker")
    machine = DeviceBenchmark(**given)
    parameters = sum(p.numel() for p in AlexNet(SOURCE145, 1000).parameters())
    predicted = {}
    for workers in (1, 4, 16):
        predicted[workers] = {
            "batch 128 in all": epoch_seconds(machine, workers, 128, parameters),
            f"batch {each} each": epoch_seconds(machine, workers, each * workers, parameters),
        }
    print(json.dumps({"prediction": predicted, "assumed": asdict(machine)}, indent=2))


if __name__ == "__main__":
    main()
