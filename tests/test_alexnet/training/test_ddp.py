"""Gradients averaged over processes, for each device of a worker; gradients in two bytes."""

import itertools
import multiprocessing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from ddp_processes import (
    COMPRESSIONS,
    SHARES,
    gradients_of,
    loss_of_share,
    new_network,
    parts_by_tower,
    run_worker,
)
from factories import narrow_network, random_inputs, relative_error
from fake_device import CPU, FakeDeviceMode, fake_device
from torch import Tensor

from alexnet.diagnostics.equivalence import he_init
from alexnet.model.placement import place_towers
from alexnet.recipes import PAPER
from alexnet.training.ddp import (
    TIMEOUT,
    Compression,
    MultiDeviceDDP,
    device_group,
    parameters_by_device,
    wrap_ddp,
)

Averages = dict[str, list[dict[str, Tensor]]]
DTYPES = {"none": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@pytest.fixture
def group_of_one(tmp_path: Path) -> Iterator[None]:
    """This process is the only worker."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("parts", ["one device", "two devices"])
@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_gradients_are_rounded_to_the_format(
    group_of_one: None, compression: Compression, parts: str
) -> None:
    network = narrow_network(PAPER)
    he_init(network)
    network.eval()  # Without dropout.

    def gradients(model: torch.nn.Module) -> dict[str, Tensor]:
        model.zero_grad()
        F.cross_entropy(model(random_inputs(2)), torch.tensor([3, 1])).backward()  # type: ignore[no-untyped-call]
        return gradients_of(network)

    expected = gradients(network)
    if parts == "one device":
        replica = wrap_ddp(network, compression)
    else:
        replica = MultiDeviceDDP(network, parts_by_tower(network), compression)
    changed = 0
    for name, gradient in gradients(replica).items():
        assert gradient.dtype == torch.float32
        rounded = expected[name].to(DTYPES[compression]).float()
        assert torch.equal(gradient, rounded), name
        changed += int((gradient != expected[name]).sum())
    assert (changed > 0) == (compression != "none")
    assert len(list(replica.parameters())) == len(list(network.parameters()))


def averages_of_workers(folder: Path, world_size: int) -> list[Averages]:
    """What each worker of a process group gets."""
    context = multiprocessing.get_context("spawn")
    processes = [
        context.Process(target=run_worker, args=(rank, world_size, str(folder)))
        for rank in range(world_size)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * world_size
    return [torch.load(folder / f"{rank}.pt") for rank in range(world_size)]


@pytest.mark.slow
def test_processes_with_two_devices_equal_one_over_the_global_batch(tmp_path: Path) -> None:
    """Bit for bit: each element is the sum of the workers' terms in one of the possible orders."""
    network, count = new_network(), len(SHARES)
    terms = []  # Of the sum, by worker.
    for rank in range(count):
        network.zero_grad()
        loss_of_share(network, rank).backward()  # type: ignore[no-untyped-call]
        terms.append(gradients_of(network))
    network.zero_grad()
    images, labels = random_inputs(sum(SHARES)), torch.arange(sum(SHARES)) % 4
    F.cross_entropy(network(images), labels).backward()  # type: ignore[no-untyped-call]
    expected = gradients_of(network)

    workers = averages_of_workers(tmp_path, count)
    for compression, rank in itertools.product(COMPRESSIONS, range(count)):
        for gradients in workers[rank][compression]:
            for name, gradient in gradients.items():
                assert torch.equal(gradient, workers[0][compression][0][name]), name
                rounded = [
                    # DDP multiplies by the reciprocal, its compression hooks divide.
                    term[name] * (1 / count)
                    if compression == "none"
                    else term[name].to(DTYPES[compression]) / count
                    for term in terms
                ]
                sums = [
                    sum(order[1:], start=order[0]).float()
                    for order in itertools.permutations(rounded)
                ]
                equal = torch.stack([gradient == one for one in sums]).any(dim=0)
                assert equal.all(), (name, compression)
                limit = {"none": 1e-5, "fp16": 2e-3, "bf16": 1e-2}[compression]
                assert relative_error(gradient, expected[name]) < limit, (name, compression)


def test_each_device_has_its_own_process_group(monkeypatch: pytest.MonkeyPatch) -> None:
    with FakeDeviceMode():
        devices = [fake_device(0), fake_device(1)]
        network = narrow_network(PAPER)
        place_towers(network, devices)
        parts = parameters_by_device(network)
        named = {id(parameter): name for name, parameter in network.named_parameters()}
    names = [{named[id(parameter)].split(".conv")[0] for parameter in parts[d]} for d in devices]
    assert {name for name in names[0] if "fc" not in name} == {"towers.0"}
    assert {"fc8.weight", "fc8.bias", "towers.0.fc6.weight"} < names[0]
    assert {name for name in names[1] if "towers.1" not in name} == set()
    assert sum(map(len, parts.values())) == len(list(network.parameters())) == 30

    calls: list[dict[str, Any]] = []
    monkeypatch.setattr(dist, "new_group", lambda **options: calls.append(options))
    gpus = [torch.device("cuda", 2), torch.device("cuda", 3)]
    for gpu in gpus:
        device_group(gpu)
    assert calls == [{"backend": "nccl", "device_id": gpu, "timeout": TIMEOUT} for gpu in gpus]


def test_tensors_on_the_cpu_use_the_default_process_group(group_of_one: None) -> None:
    assert device_group(CPU) is dist.group.WORLD


def test_precision_and_range_of_the_formats() -> None:
    small = torch.tensor(1e-9)
    assert small.half() == 0
    assert small.bfloat16() != 0
    above_one = 1 + torch.tensor([2.0**-10, 2.0**-7, 2.0**-8])
    np.testing.assert_array_equal((above_one.half() > 1).numpy(), [True, True, True])
    np.testing.assert_array_equal((above_one.bfloat16() > 1).numpy(), [False, True, False])
