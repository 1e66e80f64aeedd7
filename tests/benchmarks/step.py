"""The cost of response normalization in a training step.

    python tests/benchmarks/step.py --output step.json

Each variant is a process that contains the two-tower network. For each line on its standard input
it computes one step: forward pass, backward pass, update, with crops that are in memory. The
processes compute in turn, one step at a time.

``source145``, ``paper``: the project's training step. ``none``: the same without normalization.
``torch``: the same with ``nn.LocalResponseNorm`` for the cross-map normalization, and without the
normalization within maps, in a plain process. ``torch, memory kept``: the same in a process that
keeps freed memory, as the project's workers do (``pipelines/cluster.py``). ``--more`` compares
options of ``train.py`` with the default instead: bf16, ``torch.compile``, channels-last weights.
Each process takes about 2.5 GB.
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

from alexnet.model.compilation import compile_towers
from alexnet.model.dropout import dropout_keys
from alexnet.model.towers import AlexNet, Tower, initialize
from alexnet.recipes import CROP_SIZE, PAPER, SOURCE145, Recipe, ablate
from alexnet.shards.loader import Batch
from alexnet.training.loop import train_step
from alexnet.training.optimizer import EpochRates, build_optimizer, set_rates
from pipelines.cluster import KEEP_FREED_MEMORY

NONE = ablate(SOURCE145, normalization=False)
VARIANTS: dict[str, tuple[Recipe, str]] = {
    "source145": (SOURCE145, ""),
    "paper": (PAPER, ""),
    "none": (NONE, ""),
    "torch": (PAPER, "torch"),
    "torch, memory kept": (PAPER, "torch kept"),
}
OPTION_VARIANTS: dict[str, tuple[Recipe, str]] = {
    "bf16": (SOURCE145, "bf16"),
    "compiled": (SOURCE145, "compile"),
    "channels-last weights": (SOURCE145, "channels-last"),
}
RATIOS = {
    **{f"{name} / source145": (name, "source145") for name in OPTION_VARIANTS},
    "paper / torch": ("paper", "torch"),
    "paper / torch, memory kept": ("paper", "torch, memory kept"),
    "source145 / none": ("source145", "none"),
    "paper / none": ("paper", "none"),
}


def step_function(name: str, batch: int, threads: int, classes: int) -> Callable[[], None]:
    """A function that computes one training step."""
    recipe, kind = (VARIANTS | OPTION_VARIANTS)[name]
    torch.set_num_threads(threads)
    network = AlexNet(recipe, classes)
    initialize(network, recipe, 0)
    if "torch" in kind:
        for tower in network.towers:
            assert isinstance(tower, Tower)
            for layer in ("norm1", "norm2"):
                setattr(tower, layer, nn.LocalResponseNorm(5, 1e-4, 0.75, 2.0))
    if kind == "channels-last":
        network.to(memory_format=torch.channels_last)
    if kind == "compile":
        assert compile_towers(network) is None
    optimizer = build_optimizer(network, recipe)
    set_rates(optimizer, EpochRates(0.001))
    random = torch.Generator().manual_seed(0)
    # Channels last in memory, like the result of the augmentation.
    crops = 60 * torch.randn((batch, CROP_SIZE, CROP_SIZE, 3), generator=random).permute(0, 3, 1, 2)
    labels = torch.randint(0, classes, (batch,), generator=random)
    unused: Any = None
    global_batch = Batch(unused, labels, unused, 0, batch)

    def step() -> None:
        keys = [dropout_keys(0, 0, torch.arange(batch))]
        train_step(network, optimizer, [crops], global_batch, 1, keys=keys, bf16=kind == "bf16")

    return step


def run_variant(name: str, batch: int, threads: int, classes: int) -> None:
    """Compute a step for each line of standard input, and print its seconds."""
    step = step_function(name, batch, threads, classes)
    for _ in range(2):
        step()
    print("ready", flush=True)
    for _ in sys.stdin:
        started = time.perf_counter()
        step()
        print(time.perf_counter() - started, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--output")
    parser.add_argument("--variant")
    parser.add_argument("--more", action="store_true")
    for name, default in (("batch", 128), ("threads", 2), ("classes", 1000), ("rounds", 7)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    if options.variant:
        run_variant(options.variant, options.batch, options.threads, options.classes)
        return
    names = ["source145", *OPTION_VARIANTS] if options.more else list(VARIANTS)
    arguments = [f"--{name}={getattr(options, name)}" for name in ("batch", "threads", "classes")]
    processes = {}
    for name in names:
        command = [sys.executable, __file__, f"--variant={name}", *arguments]
        variables = {} if name == "torch" else KEEP_FREED_MEMORY
        process = subprocess.Popen(
            command,
            env=os.environ | variables,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )
        assert process.stdout
        assert process.stdout.readline() == "ready\n", name
        processes[name] = process
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(options.rounds):
        for name, process in processes.items():
            assert process.stdin
            assert process.stdout
            process.stdin.write("\n")
            seconds[name].append(float(process.stdout.readline()))
    for process in processes.values():
        process.communicate()
    rates = {name: options.batch / statistics.median(taken) for name, taken in seconds.items()}
    result = {
        "batch": options.batch,
        "threads": options.threads,
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
    if options.output:
        Path(options.output).write_text(json.dumps(result, indent=2))
    print(json.dumps({k: v for k, v in result.items() if k != "seconds"}, indent=2))


if __name__ == "__main__":
    main()
