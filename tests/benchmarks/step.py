"""What response normalization costs a training step, against torch's own and against none.

    python tests/benchmarks/step.py --output step.json

Each contestant is a process of its own that holds the two-tower network and makes
one step when it is told to: forward, backward, update, from patches in memory. They take turns.

``source145``, ``paper``: the project's training step. ``none``: the same without normalization.
``torch``: the same with ``nn.LocalResponseNorm`` in place of the cross-map form and nothing in
place of the within-map one, in a plain process; ``torch, memory kept``: the same in a process that
keeps freed memory, as the project's workers do (``alexnet/allocation.py``). ``--more`` compares
options of ``train.py`` with the default instead: bf16, ``torch.compile``, the weights' layout.
Each contestant takes some 2.5 GB.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from alexnet.allocation import KEEP_FREED_MEMORY
from alexnet.model.compilation import compile_towers
from alexnet.model.towers import AlexNet, Tower, initialize
from alexnet.recipes import CROP_SIZE, PAPER, SOURCE145, Recipe, ablate
from alexnet.shards.loader import Batch
from alexnet.training.loop import train_step
from alexnet.training.optimizer import EpochRates, build_optimizer, set_rates

NONE = ablate(SOURCE145, normalization=False)
CONTESTANTS: dict[str, tuple[Recipe, str]] = {
    "source145": (SOURCE145, ""),
    "paper": (PAPER, ""),
    "none": (NONE, ""),
    "torch": (PAPER, "torch"),
    "torch, memory kept": (PAPER, "torch kept"),
}
MORE: dict[str, tuple[Recipe, str]] = {
    "bf16": (SOURCE145, "bf16"),
    "compiled": (SOURCE145, "compile"),
    "channels-last weights": (SOURCE145, "channels-last"),
}
RATIOS = {
    **{f"{name} / source145": (name, "source145") for name in MORE},
    "paper / torch": ("paper", "torch"),
    "paper / torch, memory kept": ("paper", "torch, memory kept"),
    "source145 / none": ("source145", "none"),
    "paper / none": ("paper", "none"),
}


def stepper(name: str, batch: int, threads: int, classes: int) -> Callable[[], None]:
    """A function that makes one training step."""
    recipe, manner = (CONTESTANTS | MORE)[name]
    torch.set_num_threads(threads)
    network = AlexNet(recipe, classes)
    initialize(network, recipe, 0)
    if "torch" in manner:
        for tower in network.towers:
            assert isinstance(tower, Tower)
            for layer in ("norm1", "norm2"):
                setattr(tower, layer, nn.LocalResponseNorm(5, 1e-4, 0.75, 2.0))
    if manner == "channels-last":
        network.to(memory_format=torch.channels_last)
    if manner == "compile":
        assert compile_towers(network) is None
    optimizer = build_optimizer(network, recipe)
    set_rates(optimizer, EpochRates(0.001))
    random = torch.Generator().manual_seed(0)
    # Channels last in memory, as the augmentation leaves them.
    patches = 60 * torch.randn((batch, CROP_SIZE, CROP_SIZE, 3), generator=random).permute(
        0, 3, 1, 2
    )
    labels = torch.randint(0, classes, (batch,), generator=random)
    nothing: Any = None
    given = Batch(nothing, labels, nothing, 0, batch)

    def step() -> None:
        train_step(network, optimizer, [patches], given, 1, bf16=manner == "bf16")

    return step


def contestant(name: str, batch: int, threads: int, classes: int) -> None:
    """Make a step for each line of standard input; print its seconds."""
    step = stepper(name, batch, threads, classes)
    for _ in range(2):
        step()
    print("ready", flush=True)
    for _ in sys.stdin:
        begun = time.perf_counter()
        step()
        print(time.perf_counter() - begun, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--output")
    parser.add_argument("--contestant")
    parser.add_argument("--more", action="store_true")
    for name, default in (("batch", 128), ("threads", 2), ("classes", 1000), ("rounds", 7)):
        parser.add_argument(f"--{name}", type=int, default=default)
    given = parser.parse_args()
    if given.contestant:
        contestant(given.contestant, given.batch, given.threads, given.classes)
        return
    names = ["source145", *MORE] if given.more else list(CONTESTANTS)
    options = [f"--{name}={getattr(given, name)}" for name in ("batch", "threads", "classes")]
    running = {}
    for name in names:
        command = [sys.executable, __file__, f"--contestant={name}", *options]
        kept = {} if name == "torch" else KEEP_FREED_MEMORY
        process = subprocess.Popen(
            command,
            env=os.environ | kept,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )
        assert process.stdout
        assert process.stdout.readline() == "ready\n", name
        running[name] = process
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(given.rounds):
        for name, process in running.items():
            assert process.stdin
            assert process.stdout
            process.stdin.write("\n")
            seconds[name].append(float(process.stdout.readline()))
    for process in running.values():
        process.communicate()
    rates = {name: given.batch / statistics.median(taken) for name, taken in seconds.items()}
    result = {
        "batch": given.batch,
        "threads": given.threads,
        "images_per_second": {name: round(rate, 1) for name, rate in rates.items()},
        "ratios": {
            label: round(
                statistics.median(b / a for a, b in zip(seconds[x], seconds[y], strict=True)), 3
            )
            for label, (x, y) in RATIOS.items()
            if {x, y} <= seconds.keys()
        },
        "seconds": seconds,
    }
    if given.output:
        Path(given.output).write_text(json.dumps(result, indent=2))
    print(json.dumps({k: v for k, v in result.items() if k != "seconds"}, indent=2))


if __name__ == "__main__":
    main()
