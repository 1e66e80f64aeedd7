"""Training with each tower on its own fake device: real numbers, real autograd.

Threads, streams and kernels of real GPUs are not tested here.
"""

import itertools
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from factories import (
    SOURCE145_AND_SLOW_PAPER,
    loader_of,
    narrow_network,
    random_inputs,
    total,
    train_context,
)
from fake_device import CPU, FakeDeviceMode, FakeDeviceTensor, fake_device
from torch import Tensor

from alexnet.diagnostics.copies import CopyTracer, DeviceCopy
from alexnet.diagnostics.equivalence import he_init
from alexnet.metrics import LossAndErrors
from alexnet.model import towers
from alexnet.model.dropout import Dropout
from alexnet.model.placement import place_towers
from alexnet.model.towers import AlexNet
from alexnet.recipes import PAPER, SOURCE145, Recipe
from alexnet.shards.loader import ShardLoader
from alexnet.shards.manifest import Manifest
from alexnet.training.device_queue import SideStream
from alexnet.training.loop import Step, train_epoch
from alexnet.training.optimizer import EpochRates, MomentumSGD, build_optimizer, set_rates
from alexnet.training.validation import validate

BATCH_SIZE = 2
RATES = EpochRates(0.001)
FIRST, SECOND = TWO_DEVICES = [fake_device(0), fake_device(1)]
aten = torch.ops.aten


@pytest.fixture
def fake_devices(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeDeviceMode]:
    """Two fake devices during a test."""
    with FakeDeviceMode() as mode:
        monkeypatch.setattr(torch.cuda, "default_generators", mode.generators)
        yield mode


class TrainingRun:
    """The training of a narrow network on some devices."""

    def __init__(self, dataset: Manifest, recipe: Recipe, devices: list[torch.device]) -> None:
        self.network = narrow_network(recipe)
        he_init(self.network)
        place_towers(self.network, devices)
        self.optimizer: MomentumSGD = build_optimizer(self.network, recipe)
        set_rates(self.optimizer, RATES)
        self.context = train_context(dataset, recipe, devices=devices)
        self.dataset = dataset

    def steps(self, count: int, offset: int = 0) -> list[Step]:
        loader = ShardLoader(manifest=self.dataset, batch_size=BATCH_SIZE, seed=3)
        steps = train_epoch(
            self.network, self.optimizer, loader, self.context, RATES, epoch=0, offset=offset
        )
        with closing(steps):
            return list(itertools.islice(steps, count))

    def tensors(self) -> dict[str, Tensor]:
        """Weights, gradients and velocities, on the CPU."""
        tensors = {}
        for name, weight in self.network.named_parameters():
            assert weight.grad is not None
            tensors[f"{name}, weight"] = weight.detach().cpu()
            tensors[f"{name}, gradient"] = weight.grad.cpu()
            tensors[f"{name}, velocity"] = self.optimizer.velocity(weight).cpu()
        return tensors


@pytest.mark.parametrize("recipe", SOURCE145_AND_SLOW_PAPER)
def test_training_on_two_devices_equals_training_on_one_bit_for_bit(
    dataset: Manifest, recipe: Recipe, fake_devices: FakeDeviceMode
) -> None:
    # Without dropout, because each device has its own masks.
    recipe = replace(recipe, dropout=0.0)
    one = TrainingRun(dataset, recipe, [CPU])
    two = TrainingRun(dataset, recipe, TWO_DEVICES)
    losses = [[float(step.loss) for step in run.steps(2)] for run in (one, two)]
    assert losses[0] == losses[1]
    assert len(set(losses[0])) == 2
    expected, tensors = one.tensors(), two.tensors()
    assert len(tensors) == 3 * (2 * 14 + 2)
    assert all(torch.equal(tensors[name], expected[name]) for name in expected)
    assert all(float(tensors[name].abs().max()) > 0 for name in tensors)
    errors: list[LossAndErrors] = [
        validate(run.network, loader_of(dataset), run.context) for run in (one, two)
    ]
    assert errors[0] == errors[1]


def test_all_tensors_of_a_tower_stay_on_its_device(
    dataset: Manifest, fake_devices: FakeDeviceMode
) -> None:
    run = TrainingRun(dataset, SOURCE145, TWO_DEVICES)
    (step,) = run.steps(1)
    assert {step.loss.device, step.top1_wrong.device, step.top5_wrong.device} == {FIRST}
    for name, weight in run.network.named_parameters():
        assert weight.grad is not None
        tensors = [weight, weight.grad, run.optimizer.velocity(weight)]
        device = SECOND if name.startswith("towers.1.") else FIRST
        assert [tensor.device for tensor in tensors] == [device] * 3
        assert all(isinstance(tensor, FakeDeviceTensor) for tensor in tensors)


def test_all_copies_of_a_step(dataset: Manifest, fake_devices: FakeDeviceMode) -> None:
    run = TrainingRun(dataset, SOURCE145, TWO_DEVICES)
    run.steps(1)
    with CopyTracer() as tracer:
        run.steps(1, offset=BATCH_SIZE)
    from_cpu = [copy for copy in tracer.copies if copy.source == CPU]
    between_towers = [copy for copy in tracer.copies if copy.source != CPU]

    exchanged = [(BATCH_SIZE, 128, 13, 13), (BATCH_SIZE, 4608), (BATCH_SIZE, 24)]  # conv3, fc6, fc7
    directions = (FIRST, SECOND), (SECOND, FIRST)
    forward = [DeviceCopy(*d, shape, torch.float32) for shape in exchanged for d in directions]
    forward.append(DeviceCopy(SECOND, FIRST, (BATCH_SIZE, 24), torch.float32))  # fc8
    backward = [copy._replace(source=copy.target, target=copy.source) for copy in forward]
    assert Counter(between_towers) == Counter(forward + backward)
    floats = 2 * (128 * 13 * 13 + 4608 + 24) + 24
    assert sum(copy.bytes for copy in between_towers) == 2 * 4 * BATCH_SIZE * floats

    images = [copy for copy in from_cpu if copy.dtype == torch.uint8]
    assert Counter(images) == Counter(
        DeviceCopy(CPU, target, (BATCH_SIZE, 256, 256, 3), torch.uint8) for target in TWO_DEVICES
    )
    others = [copy for copy in from_cpu if copy.dtype != torch.uint8]
    assert sum(copy.bytes for copy in others) <= 64 * BATCH_SIZE * len(TWO_DEVICES)
    others.remove(DeviceCopy(CPU, FIRST, (BATCH_SIZE,), torch.int64))  # The labels.
    augment_params = {
        target: [copy[2:] for copy in others if copy.target == target] for target in TWO_DEVICES
    }
    assert augment_params[FIRST] == augment_params[SECOND]


STAGES = {
    aten._to_copy.default: "copy",
    aten.cat.default: "concatenate",
    aten.convolution.default: "compute",
    aten.addmm.default: "compute",
}


@pytest.mark.parametrize("recipe", SOURCE145_AND_SLOW_PAPER)
def test_each_stage_copies_then_concatenates_then_computes(
    recipe: Recipe, fake_devices: FakeDeviceMode
) -> None:
    """Otherwise each GPU would wait for the other one's computation."""
    network = narrow_network(recipe)
    he_init(network)
    crops = random_inputs(1)
    expected = network.eval()(crops)
    place_towers(network, TWO_DEVICES)
    inputs = [crops.to(device) for device in TWO_DEVICES]
    fake_devices.operations.clear()
    logits = network(*inputs)
    order = [STAGES[operation] for operation in fake_devices.operations if operation in STAGES]
    runs = [(name, len(list(run))) for name, run in itertools.groupby(order)]
    towers_and_copies = [("copy", 2), ("concatenate", 2)]
    assert runs == [
        ("compute", 4),  # conv1 and conv2.
        *towers_and_copies,
        ("compute", 6),  # conv3, conv4 and conv5.
        *towers_and_copies,
        ("compute", 2),  # fc6.
        *towers_and_copies,
        ("compute", 2),  # fc7.
        ("copy", 1),
        ("concatenate", 1),
        ("compute", 1),  # fc8.
    ]
    assert torch.equal(logits.cpu(), expected)


@pytest.mark.parametrize("recipe", SOURCE145_AND_SLOW_PAPER)
def test_no_operation_of_a_step_waits_for_a_device(
    dataset: Manifest, recipe: Recipe, fake_devices: FakeDeviceMode
) -> None:
    run = TrainingRun(dataset, recipe, TWO_DEVICES)
    fake_devices.operations.clear()
    steps = run.steps(2)
    sums = total(steps)
    validate(run.network, loader_of(dataset), run.context)
    assert aten.convolution_backward.default in fake_devices.operations
    assert fake_devices.waits == []
    # Such an operation would be found.
    assert sums.loss == sum(float(step.loss) for step in steps)
    assert fake_devices.waits == [aten._local_scalar_dense.default] * 2
    steps[0].loss.cpu()
    assert fake_devices.waits[2:] == [aten._to_copy.default]


class FakeStream:
    """A stream of a GPU that notes what it is told among the operations."""

    def __init__(self, operations: list[Any], name: str) -> None:
        self.operations, self.name = operations, name

    def wait_stream(self, other: "FakeStream") -> None:
        self.operations.append(f"{self.name} waits for {other.name}")

    @contextmanager
    def use(self) -> Iterator[None]:
        self.operations.append(f"on {self.name}")
        yield
        self.operations.append("on main")


def test_inputs_are_prepared_on_side_streams(
    dataset: Manifest, fake_devices: FakeDeviceMode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The side stream never waits for the step; the step waits for it, and the CPU for neither."""
    operations: list[Any] = fake_devices.operations
    run = TrainingRun(dataset, SOURCE145, TWO_DEVICES)
    expected = TrainingRun(dataset, SOURCE145, TWO_DEVICES)
    expected_losses = [float(step.loss) for step in expected.steps(2)]
    main = FakeStream(operations, "main")

    def use(stream: FakeStream) -> AbstractContextManager[None]:
        return stream.use()

    monkeypatch.setattr(torch.cuda, "Stream", lambda gpu: FakeStream(operations, f"side {gpu}"))
    monkeypatch.setattr(torch.cuda, "stream", use)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda gpu: main)
    monkeypatch.setattr(
        FakeDeviceTensor,
        "record_stream",
        lambda tensor, stream: operations.append(f"{tensor.device} is used on {stream.name}"),
        raising=False,
    )
    operations.clear()
    streams = [SideStream(torch.device("cuda", number)) for number in range(2)]
    assert operations == [f"side cuda:{number} waits for main" for number in range(2)]
    run.context = replace(run.context, side_streams=streams)
    operations.clear()
    fake_devices.waits.clear()
    steps = run.steps(2)
    assert fake_devices.waits == []

    def prepared(number: int) -> list[str]:
        side, device = f"side cuda:{number}", TWO_DEVICES[number]
        return [f"on {side}", "on main", f"main waits for {side}", f"{device} is used on main"]

    notes = [note for note in operations if isinstance(note, str)]
    # The images for both towers, the labels, and what the dropout of both towers depends on.
    both = [*prepared(0), *prepared(1)]
    assert notes == [*both, *prepared(0), *both] * 2
    # What copies and crops images is on the side streams, and nothing of the network is.
    current = "main"
    on_side: set[Any] = set()
    on_main: set[Any] = set()
    for operation in operations:
        if isinstance(operation, str):
            current = operation[3:] if operation.startswith("on ") else current
        else:
            (on_main if current == "main" else on_side).add(operation)
    assert aten.index.Tensor in on_side - on_main
    assert {aten.convolution.default, aten.addmm.default} <= on_main - on_side
    assert [float(step.loss) for step in steps] == expected_losses


def test_the_devices_have_different_dropout_masks(
    dataset: Manifest, fake_devices: FakeDeviceMode
) -> None:
    def run(earlier_seed: int) -> tuple[list[Tensor], dict[str, Tensor]]:
        torch.manual_seed(earlier_seed)
        fake_devices.generators[1].manual_seed(earlier_seed)
        training = TrainingRun(dataset, PAPER, TWO_DEVICES)
        masks: list[Tensor] = []
        for module in training.network.modules():
            if isinstance(module, Dropout):
                module.register_forward_hook(lambda _, inputs, __: masks.append(inputs[1].cpu()))
        training.steps(1)
        return masks, training.tensors()

    masks, tensors = run(1)
    assert [tuple(mask.shape) for mask in masks] == [(BATCH_SIZE, 24)] * 4
    for first, second in itertools.combinations(masks, 2):
        assert 0.3 < (first == second).float().mean() < 0.7
    same_masks, same_tensors = run(2)
    assert all(torch.equal(*pair) for pair in zip(masks, same_masks, strict=True))
    assert all(torch.equal(same_tensors[name], tensors[name]) for name in tensors)


def test_operations_on_tensors_of_two_devices_raise_an_error(fake_devices: FakeDeviceMode) -> None:
    first, second = (torch.ones(2, 3).to(device) for device in TWO_DEVICES)
    assert torch.equal((first + second.to(FIRST)).cpu(), torch.full((2, 3), 2.0))
    assert torch.equal((first * torch.tensor(3.0)).cpu(), torch.full((2, 3), 3.0))
    for other in (second, torch.ones(2, 3)):
        with pytest.raises(RuntimeError, match="more than one device"):
            first + other
        with pytest.raises(RuntimeError, match="more than one device"):
            torch.cat([first, other])
    with pytest.raises(RuntimeError, match="more than one device"):
        first.add_(second)


def crops_on(devices: list[torch.device]) -> list[Tensor]:
    return [torch.zeros(1, 3, 224, 224).to(device) for device in devices]


def test_a_missing_copy_raises_an_error(
    fake_devices: FakeDeviceMode, monkeypatch: pytest.MonkeyPatch
) -> None:
    network: AlexNet = narrow_network(PAPER).eval()
    place_towers(network, TWO_DEVICES)
    for devices in ([FIRST, FIRST], [SECOND, FIRST], [FIRST, CPU]):
        with pytest.raises(RuntimeError, match="more than one device"):
            network(*crops_on(devices))
    monkeypatch.setattr(towers, "copy_to", lambda parts, _: list(parts))
    with pytest.raises(RuntimeError, match="more than one device"):
        network(*crops_on(TWO_DEVICES))
