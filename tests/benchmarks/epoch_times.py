"""A PREDICTION, not a measurement: the time of an epoch of ILSVRC2012 on workers of two GPUs.

    python tests/benchmarks/epoch_times.py --step-seconds 0.045

The inputs are measured elsewhere: the time of a step on one pair of GPUs (``train.py
--check-devices`` prints it) and the images per second that one CPU core decodes (``ingest.py``,
uncropped: 6,010 on two cores, hence the default; GPUs crop the images themselves). No GPU was
available. The value .045 s is an assumption: 128 images of 4.3 GFLOP, forward and backward, at 30 %
of the 19.5 TFLOP/s in float32 of each of two A100. The result is that of this model:

    compute   the step of a worker's part of the batch, in proportion to its images
    copies    activations that the towers exchange, and their gradients (paper, section 3.5): floats
              of each image into conv3, fc6, fc7 and fc8, over the link between the GPUs of a pair
    reduce    ring all-reduce of all gradients: 2 (W - 1) / W · 4 bytes · parameters / bandwidth,
              half as much with --gradient-compression; DDP overlaps it with up to OVERLAPPED of the
              backward pass
    ingest    images per second that a worker's CPUs prepare; the slower of both counts

Contention, stragglers, validation and checkpoints are not in the model.
"""

import argparse
import json
from dataclasses import asdict, dataclass

from alexnet.model.towers import AlexNet
from alexnet.recipes import SOURCE145

IMAGES = 1_281_167
EXCHANGED = 2 * (128 * 13 * 13 + 4608 + 2048) + 2048
"""Floats of one image that are copied between the towers in the forward pass: in both directions
into conv3, fc6 and fc7, in one direction into fc8."""
BACKWARD_FRACTION = 2 / 3
"""Part of a step's time in the backward pass: it has two products for each one in the forward
pass."""
OVERLAPPED = 0.8
"""Part of the backward pass during which gradients are ready to be sent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hardware:
    """The inputs of the prediction."""

    step_seconds: float
    """A step of ``measured_batch`` images on one pair of GPUs, without copies."""
    measured_batch: int
    link: float
    """Bytes per second between the GPUs of a pair."""
    network: float
    """Bytes per second between workers."""
    decode_rate: float
    """Images per second and core, from JPEG shards."""
    cores: int
    """CPU cores of a worker."""
    gradient_bytes: int


def epoch_seconds(
    hardware: Hardware, workers: int, batch: int, parameters: int
) -> dict[str, float]:
    """The parts of an epoch's time, in seconds. ``total`` is the time with their overlap."""
    images = batch / workers
    steps = IMAGES / batch
    compute = hardware.step_seconds * images / hardware.measured_batch
    copies = 2 * 4 * EXCHANGED * images / hardware.link
    ring = 2 * (workers - 1) / workers * hardware.gradient_bytes * parameters / hardware.network
    visible_reduce = max(0.0, ring - OVERLAPPED * BACKWARD_FRACTION * compute)
    ingest = images / (hardware.decode_rate * hardware.cores)
    step = max(compute + copies + visible_reduce, ingest)
    return {
        "compute": steps * compute,
        "copies": steps * copies,
        "all_reduce_not_hidden": steps * visible_reduce,
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
    options = vars(parser.parse_args())
    per_worker = options.pop("batch_per_worker")
    hardware = Hardware(**options)
    parameters = sum(p.numel() for p in AlexNet(SOURCE145, 1000).parameters())
    predicted = {}
    for workers in (1, 4, 16):
        predicted[workers] = {
            "batch 128 in all": epoch_seconds(hardware, workers, 128, parameters),
            f"batch {per_worker} each": epoch_seconds(
                hardware, workers, per_worker * workers, parameters
            ),
        }
    print(json.dumps({"prediction": predicted, "assumed": asdict(hardware)}, indent=2))


if __name__ == "__main__":
    main()
