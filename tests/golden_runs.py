"""The losses of short trainings, kept to notice any change of arithmetic.

    python tests/golden_runs.py             # compare with what is kept
    python tests/golden_runs.py --write     # keep what this computer computes

Each run is 20 updates of a narrow network on generated images, in one thread. Which bits result
depends on the kind of CPU and on a few packages; both are kept with the losses. On one kind
a single changed bit is an error; elsewhere the losses only have to be close.
"""

import argparse
import json
import platform
import re
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import factories
import numpy as np
import torch

from alexnet.model.precision import Precision
from alexnet.recipes import RECIPES, Recipe, ablate
from alexnet.shards.loader import ShardLoader
from alexnet.shards.manifest import Manifest
from alexnet.shards.order import MICROBATCHES
from alexnet.training.ema import EMA
from alexnet.training.exact import ExactWorker
from alexnet.training.loop import train_epoch
from alexnet.training.optimizer import EpochRates, set_rates
from alexnet.training.validation import validate

KEPT = Path(__file__).parent / "golden_runs.json"
TOLERANCE = 1e-3
"""Of losses on another kind of CPU, relative."""

Losses = Mapping[str, list[str]]
"""By name of the run: the losses as ``float.hex`` writes them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GoldenRun:
    """What is trained, and how."""

    name: str
    recipe: Recipe
    precision: Precision = "float32"
    channels_last: bool = False
    exact: bool = False
    ema: float | None = None
    warmup_rows: int = 0
    colour_noise: bool = True
    layers: Mapping[str, float] = field(default_factory=dict)
    biases: float | None = None


def golden_runs() -> Iterator[GoldenRun]:
    """Each recipe with each switch that changes arithmetic."""
    for name, recipe in RECIPES.items():
        recipes = {
            "": recipe,
            ", one tower": ablate(recipe, towers=1),
            ", no normalization": ablate(recipe, normalization=False),
            ", no overlapping pooling": ablate(recipe, overlapping_pooling=False),
            ", no dropout": replace(recipe, dropout=0.0),
        }
        for switch, changed in recipes.items():
            yield GoldenRun(name=f"{name}{switch}", recipe=changed)
        yield GoldenRun(name=f"{name}, bf16", recipe=recipe, precision="bf16")
        yield GoldenRun(name=f"{name}, channels last", recipe=recipe, channels_last=True)
        yield GoldenRun(name=f"{name}, exact", recipe=recipe, exact=True)
        yield GoldenRun(name=f"{name}, average", recipe=recipe, ema=0.7)
        yield GoldenRun(name=f"{name}, warm-up", recipe=recipe, warmup_rows=30)
        yield GoldenRun(
            name=f"{name}, slow phase",
            recipe=recipe,
            colour_noise=False,
            layers={"conv1": 0.0},
            biases=1e-4,
        )


def losses_of(run: GoldenRun, dataset: Manifest) -> list[str]:
    """The loss of each update, and that of the validation at the end."""
    network, optimizer = factories.start_training(run.recipe)
    if run.channels_last:
        network.to(memory_format=torch.channels_last)
    average = EMA(network, run.ema) if run.ema else None
    context = replace(
        factories.train_context(dataset, run.recipe),
        bf16=run.precision == "bf16",
        warmup_rows=run.warmup_rows,
        exact=ExactWorker.create(0, 1, 1) if run.exact else None,
    )
    loader = ShardLoader(
        manifest=dataset, batch_size=2, seed=2012, microbatches=MICROBATCHES if run.exact else None
    )
    rates = EpochRates(0.001, layers=run.layers, colour_noise=run.colour_noise, biases=run.biases)
    set_rates(optimizer, rates)
    losses = []
    steps = train_epoch(network, optimizer, loader, context, rates, epoch=0)
    for number, step in enumerate(steps, start=1):
        losses.append(float(step.loss))
        if average:
            average.update(network, number)
    if average:
        with average.swapped(network):
            losses.append(validate(network, loader, context).loss)
    else:
        losses.append(validate(network, loader, context).loss)
    return [loss.hex() for loss in losses]


def kind_of_cpu() -> str:
    """What the bits depend on."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        text = ""
    found = [re.search(rf"^{name}\s*:\s*(.+)$", text, re.M) for name in ("vendor_id", "cpu family")]
    model = " ".join(match[1] for match in found if match) or platform.processor()
    capability = torch.backends.cpu.get_cpu_capability()
    versions = [
        f"{name} {version(name).split('+')[0]}" for name in ("torch", "pillow", "simplejpeg")
    ]
    return ", ".join([platform.machine(), model, capability, *versions])


def differences(kept: Losses, found: Losses, *, same_kind: bool) -> list[str]:
    """A line for each run whose losses have changed."""
    lines = [f"{name}: not kept" for name in found.keys() - kept.keys()]
    lines += [f"{name}: is kept, but no longer run" for name in kept.keys() - found.keys()]
    for name in found.keys() & kept.keys():
        old, new = (np.array([float.fromhex(x) for x in losses[name]]) for losses in (kept, found))
        if old.shape != new.shape:
            lines.append(f"{name}: {len(new)} losses, {len(old)} are kept")
            continue
        changed = old != new if same_kind else ~np.isclose(new, old, rtol=TOLERANCE)
        if changed.any():
            first = int(np.argmax(changed))
            lines.append(
                f"{name}: {changed.sum()} of {len(new)} losses, from update {first + 1} on: "
                f"{float(old[first])!r} became {float(new[first])!r}"
            )
    return sorted(lines)


def compare(kept: Mapping[str, Losses], found: Losses, kind: str) -> list[str]:
    """The differences from the same kind of CPU, or from any if it is not known."""
    if kind in kept:
        return differences(kept[kind], found, same_kind=True)
    return differences(next(iter(kept.values()), {}), found, same_kind=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--write", action="store_true", help="keep what this computer computes")
    options = parser.parse_args()
    torch.set_num_threads(1)
    kept: dict[str, Any] = json.loads(KEPT.read_text()) if KEPT.exists() else {}
    kind = kind_of_cpu()
    with tempfile.TemporaryDirectory(prefix="alexnet-golden-") as folder:
        raw = Path(folder, "raw")
        factories.write_images(raw)
        dataset = factories.make_dataset(raw, Path(folder, "shards"))
        found = {run.name: losses_of(run, dataset) for run in golden_runs()}
    lines = compare(kept, found, kind)
    known = "the same kind of CPU" if kind in kept else "another kind of CPU, within a tolerance"
    print(f"{kind}: compared with {known}")
    for line in lines:
        print(line)
    if options.write:
        KEPT.write_text(json.dumps(kept | {kind: found}, indent=1, sort_keys=True) + "\n")
    elif lines:
        sys.exit(1)


if __name__ == "__main__":
    main()
