"""Training with a tower on each of two devices, which are pretended: real numbers, real autograd.

Threads, streams and kernels of real GPUs are not part of it.
"""

import itertools
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from factories import he_init, narrow_network
from fake_device import CPU, Pretended, Pretending, device
from torch import Tensor

from alexnet.diagnostics.copies import CopyTracer, DeviceCopy
from alexnet.metrics import Errors
from alexnet.model import towers
from alexnet.model.placement import place_towers
from alexnet.model.towers import AlexNet, Dropout
from alexnet.recipes import PAPER, RECIPES, SOURCE145, Recipe
from alexnet.shards.format import Manifest
from alexnet.shards.loader import ShardLoader
from alexnet.shards.pixel_stats import read_statistics
from alexnet.training.augment import mean_crop, pca_axes
from alexnet.training.loop import Step, TrainContext, total, train_epoch, validate
from alexnet.training.optimizer import EpochRates, MomentumSGD, build_optimizer, set_rates

SIZE = 8
RATES = EpochRates(0.001)
FIRST, SECOND = TWO = [device(0), device(1)]
aten = torch.ops.aten


@pytest.fixture
def pretending(monkeypatch: pytest.MonkeyPatch) -> Iterator[Pretending]:
    """Two devices for the length of a test."""
    with Pretending() as mode:
        monkeypatch.setattr(torch.cuda, "default_generators", mode.generators)
        yield mode


class Run:
    """A narrow network in training on some devices."""

    def __init__(self, dataset: Manifest, recipe: Recipe, devices: list[torch.device]) -> None:
        statistics = read_statistics(str(Path(dataset.folder) / "statistics.npz"))
        self.network = narrow_network(recipe)
        he_init(self.network)
        place_towers(self.network, devices)
        self.optimizer: MomentumSGD = build_optimizer(self.network, recipe)
        set_rates(self.optimizer, RATES)
        mean = mean_crop(statistics.mean_image)
        self.setup = TrainContext(
            recipe=recipe,
            means=[mean.to(device) for device in dict.fromkeys(devices)],
            axes=pca_axes(recipe, statistics.rgb_covariance),
            seed=3,
        )
        self.dataset = dataset

    def steps(self, count: int, offset: int = 0) -> list[Step]:
        reader = ShardLoader(manifest=self.dataset, batch_size=SIZE, seed=3)
        steps = train_epoch(
            self.network, self.optimizer, reader, self.setup, RATES, epoch=0, offset=offset
        )
        assert isinstance(steps, Iterator)
        with closing(steps):
            return list(itertools.islice(steps, count))

    def tensors(self) -> dict[str, Tensor]:
        """Weights, gradients and velocities, on the CPU."""
        found = {}
        for name, weight in self.network.named_parameters():
            assert weight.grad is not None
            found[f"{name}, weight"] = weight.detach().cpu()
            found[f"{name}, gradient"] = weight.grad.cpu()
            found[f"{name}, velocity"] = self.optimizer.velocity(weight).cpu()
        return found


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_two_devices_learn_what_one_learns_bit_for_bit(
    dataset: Manifest, recipe: Recipe, pretending: Pretending
) -> None:
    # Each device has its own dropout masks, so those could not be equal.
    plain = replace(recipe, dropout=0.0)
    one, two = Run(dataset, plain, [CPU]), Run(dataset, plain, TWO)
    losses = [[float(step.loss) for step in run.steps(3)] for run in (one, two)]
    assert losses[0] == losses[1]
    assert len(set(losses[0])) == 3
    expected, found = one.tensors(), two.tensors()
    assert len(found) == 3 * (2 * 14 + 2)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert all(float(found[name].abs().max()) > 0 for name in found)
    errors: list[Errors] = [validate(run.network, dataset, run.setup) for run in (one, two)]
    assert errors[0] == errors[1]


def test_everything_stays_where_its_tower_is(dataset: Manifest, pretending: Pretending) -> None:
    run = Run(dataset, SOURCE145, TWO)
    (step,) = run.steps(1)
    assert {step.loss.device, step.top1_wrong.device, step.top5_wrong.device} == {FIRST}
    for name, weight in run.network.named_parameters():
        assert weight.grad is not None
        tensors = [weight, weight.grad, run.optimizer.velocity(weight)]
        place = SECOND if name.startswith("towers.1.") else FIRST
        assert [tensor.device for tensor in tensors] == [place] * 3
        assert all(isinstance(tensor, Pretended) for tensor in tensors)


def test_what_crosses_in_a_step(dataset: Manifest, pretending: Pretending) -> None:
    run = Run(dataset, SOURCE145, TWO)
    run.steps(1)
    with CopyTracer() as crossings:
        run.steps(1, offset=SIZE)
    float32 = torch.float32
    meetings = []
    both_ways = [(SIZE, 128, 13, 13), (SIZE, 4608), (SIZE, 24)]  # conv3, fc6, fc7
    for shape in both_ways:
        meetings += [DeviceCopy(*way, shape, float32) for way in ((FIRST, SECOND), (SECOND, FIRST))]
    meetings.append(DeviceCopy(SECOND, FIRST, (SIZE, 24), float32))  # fc8
    gradients = [m._replace(source=m.target, target=m.source) for m in meetings]
    assert Counter(c for c in crossings.found if c.source != CPU) == Counter(meetings + gradients)
    shown = [c for c in crossings.found if c.source == CPU]
    assert Counter(c for c in shown if c.dtype == torch.uint8) == Counter(
        DeviceCopy(CPU, target, (SIZE, 256, 256, 3), torch.uint8) for target in TWO
    )
    shown.remove(DeviceCopy(CPU, FIRST, (SIZE,), torch.int64))  # the labels
    draws = {
        target: [c[2:] for c in shown if c.target == target and c.dtype != torch.uint8]
        for target in TWO
    }
    assert draws[FIRST] == draws[SECOND]
    assert sum(c.bytes for c in shown if c.dtype != torch.uint8) <= 64 * SIZE * len(TWO)
    between = sum(c.bytes for c in crossings.found if c.source != CPU)
    assert between == 2 * 4 * SIZE * (2 * (128 * 13 * 13 + 4608 + 24) + 24)


WAITS = {
    aten._local_scalar_dense.default,
    aten.is_nonzero.default,
    aten.nonzero.default,
    aten.equal.default,
    aten.masked_select.default,
    aten._unique2.default,
}
"""Operations whose result, or its shape, the CPU has to know before it can go on."""


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_no_step_waits_for_a_device(
    dataset: Manifest, recipe: Recipe, pretending: Pretending
) -> None:
    run = Run(dataset, recipe, TWO)
    pretending.performed.clear()
    with CopyTracer() as crossings:
        steps = run.steps(2)
    assert aten.convolution_backward.default in pretending.performed
    assert not WAITS & set(pretending.performed)
    assert not any(crossing.target == CPU for crossing in crossings.found)
    # What waits is noticed: here somebody asks for numbers.
    total(steps)
    assert aten._local_scalar_dense.default in pretending.performed


def test_both_devices_drop_units_of_their_own(dataset: Manifest, pretending: Pretending) -> None:
    def run(noise: int) -> tuple[list[Tensor], dict[str, Tensor]]:
        torch.manual_seed(noise)
        pretending.generators[1].manual_seed(noise)
        started = Run(dataset, PAPER, TWO)
        masks: list[Tensor] = []
        for module in started.network.modules():
            if isinstance(module, Dropout):
                module.register_forward_pre_hook(lambda _, inputs: (inputs[0] * 0 + 1,))
                module.register_forward_hook(lambda _, inputs, out: masks.append((out != 0).cpu()))
        started.steps(1)
        return masks, started.tensors()

    masks, tensors = run(1)
    assert [tuple(mask.shape) for mask in masks] == [(SIZE, 24)] * 4
    for first, second in itertools.combinations(masks, 2):
        assert 0.3 < (first == second).float().mean() < 0.7
    again, same = run(2)
    assert all(torch.equal(*pair) for pair in zip(masks, again, strict=True))
    assert all(torch.equal(same[name], tensors[name]) for name in tensors)


def test_what_lies_apart_can_not_be_mixed(pretending: Pretending) -> None:
    first, second = (torch.ones(2, 3).to(device) for device in TWO)
    assert torch.equal((first + second.to(FIRST)).cpu(), torch.full((2, 3), 2.0))
    assert torch.equal((first * torch.tensor(3.0)).cpu(), torch.full((2, 3), 3.0))
    for stranger in (second, torch.ones(2, 3)):
        with pytest.raises(RuntimeError, match="more than one device"):
            first + stranger
        with pytest.raises(RuntimeError, match="more than one device"):
            torch.cat([first, stranger])
    with pytest.raises(RuntimeError, match="more than one device"):
        first.add_(second)


def patches_on(devices: list[torch.device]) -> list[Tensor]:
    return [torch.zeros(1, 3, 224, 224).to(device) for device in devices]


def test_a_missing_copy_is_noticed(pretending: Pretending, monkeypatch: pytest.MonkeyPatch) -> None:
    network: AlexNet = narrow_network(PAPER)
    place_towers(network, TWO)
    for devices in ([FIRST, FIRST], [SECOND, FIRST], [FIRST, CPU]):
        with pytest.raises(RuntimeError, match="more than one device"):
            network(*patches_on(devices))
    monkeypatch.setattr(towers, "_gather", lambda parts, _: torch.cat(list(parts), dim=1))
    with pytest.raises(RuntimeError, match="more than one device"):
        network(*patches_on(TWO))
