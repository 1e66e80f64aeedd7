"""What a GPU computes and how fast, beside figures of another program: for the first look at one.

    python tests/benchmarks/gpu.py --output gpu.json

It measures on all GPUs of the computer, in less than ten minutes, and prints a table:

    correctness    logits, gradients and the weights after 20 updates, against the CPU in float32
    step           training steps by precision, layout, ``torch.compile`` and batch size
    normalization  forward and backward pass alone, against ``torch.nn.LocalResponseNorm``
    loader         images per second from JPEG shards, by number of threads
    job            the training loop with its loader, and ``pipelines/train.py``, against the step
    towers         both towers on one GPU, and each on its own

Beside a step is the rate that Lambda measured with tf_cnn_benchmarks: AlexNet in one column,
without normalization, synthetic images, large batches. Its float32 on an A100 may have been TF32.

Gradients in float32 may differ by 1e-2 from the CPU's, although both are right: rounding decides
for some inputs of ReLU whether they are positive. ``train.py --check-devices`` compares in float64,
where that does not happen.

No measurement starts after ``--minutes``; the table says what was left out. ``--sections`` chooses
some of the sections. Without GPUs, and with
``--reduced``, a small version of everything is measured. It says nothing about GPUs, but shows that
the program works.
"""

import argparse
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import islice, product
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from ingest import make_shards
from torch import Tensor, nn

from alexnet.diagnostics.devices import CLASSES, DeviceBenchmark
from alexnet.diagnostics.equivalence import he_init
from alexnet.diagnostics.timing import measure_work
from alexnet.errors import one_line
from alexnet.model.lrn import CrossMapNorm
from alexnet.model.precision import Precision
from alexnet.recipes import CROP_SIZE, PAPER, SOURCE145, Recipe, ablate
from alexnet.shards.loader import Batch, ShardLoader
from alexnet.shards.manifest import Manifest
from alexnet.training.loop import train_epoch, train_step
from alexnet.training.network import Execution, build_network
from alexnet.training.optimizer import EpochRates, build_optimizer, set_rates

LAMBDA = {
    ("V100", 1): {"float32": 5_132, "bf16": 9_319},
    ("A100", 1): {"float32": 10_187, "tf32": 10_187, "bf16": 16_487},
    ("A100", 2): {"float32": 20_093, "tf32": 20_093, "bf16": 33_629},
}
"""Images per second by GPU, number of GPUs and precision; theirs is fp16 instead of bf16."""
CPU = torch.device("cpu")
Section = Literal["correctness", "step", "normalization", "loader", "job", "towers"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How much is measured."""

    hidden: int = 4096
    precisions: Sequence[Precision] = ("float32", "tf32", "bf16")
    layouts: Sequence[bool] = (False, True)
    compile: bool = True
    batches: Sequence[int] = (128, 512, 1024)
    updates: int = 20
    compared_images: int = 32
    images: int = 4096
    """In the shards."""
    loop_steps: int = 100
    seconds: float = 1.5
    """Of each measurement of a step, after which no repetition starts."""
    job: bool = True


REDUCED = Plan(
    hidden=32,
    precisions=("float32",),
    layouts=(True,),
    compile=False,
    batches=(2,),
    updates=2,
    compared_images=2,
    images=32,
    loop_steps=2,
    seconds=0.0,
    job=False,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One measurement."""

    section: Section
    what: str
    measure: Callable[[], float]
    unit: str = "images/s"
    peer: float | None = None
    """Lambda's rate."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A measured figure."""

    section: str
    what: str
    value: float | None
    unit: str
    peer: float | None
    note: str = ""

    def line(self) -> str:
        """The row of the table."""
        value = self.note or (f"{self.value:,.1f}" if self.unit != "" else f"{self.value:.1e}")
        peer = f"{self.peer:>14,} {(self.value or 0) / self.peer:>6.2f}" if self.peer else ""
        return f"{self.section:<14} {self.what:<52} {value:>12} {self.unit:<9}{peer}"


def peer_rate(devices: Sequence[torch.device], precision: Precision) -> float | None:
    """Lambda's rate for as many GPUs: of V100 if these are such, else of A100."""
    if devices[0].type != "cuda":
        return None
    kind = "V100" if "V100" in torch.cuda.get_device_name(devices[0]) else "A100"
    return LAMBDA.get((kind, len(devices)), {}).get(precision)


def correctness(plan: Plan, recipe: Recipe, device: torch.device) -> Iterator[Task]:
    """Norms of differences from the CPU in float32, relative to the norms there."""
    recipe = replace(recipe, dropout=0.0)
    generator = torch.Generator().manual_seed(0)
    shape = plan.compared_images, 3, CROP_SIZE, CROP_SIZE
    crops = 60 * torch.randn(shape, generator=generator)
    labels = torch.arange(plan.compared_images) % CLASSES

    def results(where: torch.device, precision: Precision) -> list[Tensor]:
        """Logits, gradients of the first update and weights after the last one."""
        execution = Execution(precision=precision)
        network, _ = build_network(recipe, CLASSES, [where], 0, execution)
        he_init(network)
        optimizer = build_optimizer(network, recipe)
        set_rates(optimizer, EpochRates(1e-4))
        inputs = [crops.to(where)]
        batch = Batch(crops, labels.to(where), np.arange(len(labels)), 0, len(labels))
        with torch.no_grad(), torch.autocast(where.type, torch.bfloat16, enabled=execution.bf16):
            logits = network(*inputs).float()
        gradients = logits
        for update in range(plan.updates):
            train_step(network, optimizer, inputs, batch, 1, bf16=execution.bf16)
            if update == 0:
                gradients = flat(p.grad for p in network.parameters() if p.grad is not None)
        return [logits.cpu(), gradients, flat(network.parameters())]

    def flat(tensors: Iterable[Tensor]) -> Tensor:
        return torch.cat([t.detach().cpu().flatten() for t in tensors])

    expected: list[Tensor] = []
    parts = "logits", "gradients", f"weights after {plan.updates} updates"
    for precision in plan.precisions:
        found: list[Tensor] = []

        def difference(part: int, precision: Precision = precision, found: Any = found) -> float:
            expected.extend([] if expected else results(CPU, "float32"))
            found.extend([] if found else results(device, precision))
            return float((found[part] - expected[part]).norm() / expected[part].norm())

        for part, name in enumerate(parts):
            yield Task(
                section="correctness",
                what=f"{name}, {precision}: difference from the CPU",
                measure=partial(difference, part),
                unit="",
            )


def step_rate(
    plan: Plan, recipe: Recipe, devices: Sequence[torch.device], images: int, how: Execution
) -> float:
    """Images per second of the training step."""
    benchmark = DeviceBenchmark(recipe, devices, images, how)
    if benchmark.not_compiled:
        raise RuntimeError(benchmark.not_compiled)
    times = measure_work(benchmark.step(), benchmark.devices, seconds=plan.seconds)
    return images / times.work


def steps(plan: Plan, recipe: Recipe, device: torch.device) -> Iterator[Task]:
    """The step by precision, layout and batch size, and without normalization."""
    without = ablate(recipe, normalization=False)
    variants = [
        (recipe, images, Execution(precision=precision, channels_last=layout), "")
        for images, precision, layout in product(plan.batches, plan.precisions, plan.layouts)
    ]
    middle = plan.batches[len(plan.batches) // 2]
    best = Execution(precision=plan.precisions[-1], channels_last=plan.layouts[-1])
    variants.append((without, middle, best, ", no normalization"))
    for network, images, how, note in variants:
        yield Task(
            section="step",
            what=step_name(images, how) + note,
            measure=partial(step_rate, plan, network, [device], images, how),
            peer=peer_rate([device], how.precision),
        )


def compiled_steps(plan: Plan, recipe: Recipe, device: torch.device) -> Iterator[Task]:
    """The step with ``torch.compile``, in the fastest precision and layout."""
    how = Execution(precision=plan.precisions[-1], channels_last=plan.layouts[-1], compile=True)
    for images in plan.batches if plan.compile else ():
        yield Task(
            section="step",
            what=step_name(images, how),
            measure=partial(step_rate, plan, recipe, [device], images, how),
            peer=peer_rate([device], how.precision),
        )


def step_name(images: int, how: Execution) -> str:
    """How a step is named in the table."""
    layout = "NHWC" if how.channels_last else "NCHW"
    return f"batch {images}, {how.precision}, {layout}" + ", compiled" * how.compile


def normalization(plan: Plan, device: torch.device) -> Iterator[Task]:
    """Milliseconds of forward and backward pass, for the maps of a tower."""
    assert PAPER.cross_map
    norms = {
        "kernel": CrossMapNorm(PAPER.cross_map),
        "torch": nn.LocalResponseNorm(5, alpha=5e-4, beta=0.75, k=2.0),
    }
    images = plan.batches[0]
    types = (torch.float32, torch.bfloat16) if device.type == "cuda" else (torch.float32,)
    for shape, dtype in product([(images, 48, 55, 55), (images, 128, 27, 27)], types):

        def milliseconds(norm: nn.Module, shape: Any = shape, dtype: Any = dtype) -> float:
            x = torch.randn(shape, device=device, dtype=dtype, requires_grad=True)
            upstream = torch.randn_like(x)
            work = partial(torch.autograd.grad, grad_outputs=upstream)
            times = measure_work(lambda: work(norm(x), x), [device], seconds=plan.seconds)
            return 1000 * times.work

        for name, norm in norms.items():
            yield Task(
                section="normalization",
                what=f"{shape}, {str(dtype)[6:]}, {name}",
                measure=partial(milliseconds, norm),
                unit="ms",
            )


def loading(plan: Plan, manifest: Manifest, *, pin_memory: bool) -> Iterator[Task]:
    """The loader alone, by number of threads."""
    cores = os.cpu_count() or 1

    def rate(threads: int) -> float:
        loader = ShardLoader(
            manifest=manifest, batch_size=128, seed=0, threads=threads, pin_memory=pin_memory
        )
        started = time.perf_counter()
        images = sum(len(batch.images) for batch in loader.epoch(0))
        return images / (time.perf_counter() - started)

    for threads in sorted({min(2**n, cores) for n in range(7)}):
        yield Task(section="loader", what=f"{threads} threads", measure=partial(rate, threads))


def jobs(plan: Plan, recipe: Recipe, manifest: Manifest, device: torch.device) -> Iterator[Task]:
    """The loop with its loader, and the whole command; the fastest precision and layout."""
    how = Execution(precision=plan.precisions[-1], channels_last=plan.layouts[-1])
    images = plan.batches[len(plan.batches) // 2]

    def loop_rate() -> float:
        repeats = -(-(plan.loop_steps + 3) * images // manifest.rows("train"))
        shards = {"train": manifest.shards["train"] * repeats, "val": ()}
        loader = ShardLoader(
            manifest=replace(manifest, shards=shards),
            batch_size=images,
            seed=0,
            threads=os.cpu_count() or 1,
            pin_memory=device.type == "cuda",
        )
        benchmark = DeviceBenchmark(recipe, [device], images, how)
        optimizer = build_optimizer(benchmark.network, recipe)
        rates = EpochRates(1e-6)
        set_rates(optimizer, rates)
        loop = train_epoch(benchmark.network, optimizer, loader, benchmark.context, rates, epoch=0)
        with closing(loop):
            next(loop).loss.item()
            started = time.perf_counter()
            *_, last = islice(loop, plan.loop_steps)
            last.loss.item()  # Waits for the device.
        return plan.loop_steps * images / (time.perf_counter() - started)

    def whole_rate() -> float:
        from job import job_rate, run_script  # Imports MLflow, which takes seconds.

        with tempfile.TemporaryDirectory(prefix="alexnet-gpu-") as folder:
            run_script("preprocess.py", "--source", manifest.source, "--workdir", folder)
            return job_rate(
                Path(folder),
                *f"--epochs 8 --batch-size {images} --device {device.type}".split(),
                *f"--precision {how.precision} --gpus-per-worker 1 --channels-last on".split(),
            )

    yield Task(section="job", what=f"training loop, {step_name(images, how)}", measure=loop_rate)
    if plan.job:
        yield Task(section="job", what=f"train.py, {step_name(images, how)}", measure=whole_rate)


def towers(plan: Plan, recipe: Recipe, gpus: Sequence[torch.device]) -> Iterator[Task]:
    """Both towers on one device, and each on its own."""
    how = Execution(precision=plan.precisions[-1], channels_last=plan.layouts[-1])
    images = plan.batches[len(plan.batches) // 2]
    for devices in [gpus[:1], gpus[:2]][: len(gpus)]:
        yield Task(
            section="towers",
            what=f"{len(devices)} device{'s'[len(devices) == 1 :]}, {step_name(images, how)}",
            measure=partial(step_rate, plan, recipe, devices, images, how),
            peer=peer_rate(devices, how.precision),
        )


def tasks(plan: Plan, gpus: Sequence[torch.device], folder: Path) -> Iterator[Task]:
    """All measurements, the most important ones first."""
    recipe, device = replace(SOURCE145, hidden=plan.hidden), (gpus or [CPU])[0]
    yield from correctness(plan, recipe, device)
    yield from steps(plan, recipe, device)
    yield from normalization(plan, device)
    yield from towers(plan, recipe, gpus or [CPU])
    rows_per_shard = min(512, plan.images)
    manifest = make_shards(plan.images, folder, ["jpeg"], rows_per_shard)["jpeg"]
    yield from loading(plan, manifest, pin_memory=bool(gpus))
    yield from jobs(plan, recipe, manifest, device)
    yield from compiled_steps(plan, recipe, device)  # Compilation takes a minute for each.


def measured(task: Task, *, time_left: bool) -> Row:
    """The row of a task. An error is its note, so that the others are measured."""
    value, note = None, ""
    try:
        value = task.measure() if time_left else None
        note = "" if time_left else "no time left"
    except Exception as error:
        note = f"failed: {one_line(error)[:200]}"
    finally:
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    return Row(
        section=task.section,
        what=task.what,
        value=value,
        unit=task.unit,
        peer=task.peer,
        note=note,
    )


def goals(rows: Sequence[Row], plan: Plan) -> dict[str, bool | None]:
    """Whether the goals for a card like A100 are met; None if one was not measured."""
    values = {row.what: row.value for row in rows}
    how = Execution(precision=plan.precisions[-1], channels_last=plan.layouts[-1])
    name = step_name(plan.batches[len(plan.batches) // 2], how)
    step, plain = values.get(name), values.get(f"{name}, no normalization")
    whole = values.get(f"train.py, {name}")
    return {
        f"step >= 0.6 of the step without normalization ({name})": (
            step >= 0.6 * plain if step and plain else None
        ),
        "train.py >= 0.9 of the step": whole >= 0.9 * step if whole and step else None,
        "step >= 8,000 images/s": step >= 8000 if step else None,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--output", type=Path, help="JSON file with all figures")
    parser.add_argument("--minutes", type=float, default=9.0, help="no measurement starts later")
    parser.add_argument("--sections", nargs="+", choices=get_args(Section), metavar="SECTION")
    parser.add_argument("--reduced", action="store_true", help="a small version, also on a CPU")
    options = parser.parse_args()
    gpus = [torch.device("cuda", number) for number in range(torch.cuda.device_count())]
    plan = Plan() if gpus and not options.reduced else REDUCED
    names = [torch.cuda.get_device_name(gpu) for gpu in gpus]
    where = ", ".join(names) or f"CPU ({torch.get_num_threads()} threads), no GPU: reduced"
    print(f"{where}; torch {torch.__version__}")
    end = time.monotonic() + 60 * options.minutes
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="alexnet-gpu-") as folder:
        for task in tasks(plan, gpus, Path(folder)):
            if options.sections and task.section not in options.sections:
                continue
            rows.append(measured(task, time_left=time.monotonic() < end))
            print(rows[-1].line(), flush=True)
    met = {} if plan is REDUCED else goals(rows, plan)
    result = {
        "devices": names,
        "cpu": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "reduced": plan is REDUCED,
        "rows": [asdict(row) for row in rows],
        "goals": met,
        "lambda": {f"{count} x {kind}": rates for (kind, count), rates in LAMBDA.items()},
    }
    for goal, is_met in met.items():
        print(f"{goal}: {'not measured' if is_met is None else 'met' if is_met else 'NOT met'}")
    if options.output:
        options.output.write_text(json.dumps(result, indent=2) + "\n")
    if any(row.note.startswith("failed") for row in rows):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
