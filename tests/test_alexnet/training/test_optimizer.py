"""The update rule of 2012 against float64 NumPy, the rates by layer, and both schedules."""

import itertools
from collections.abc import Mapping, Sequence

import numpy as np
import pytest
import torch
from factories import rate_changes
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from alexnet.recipes import LAYERS, RECIPES, SOURCE145, Recipe, ablate
from alexnet.schedules import PlateauSchedule, StepSchedule
from alexnet.training.optimizer import (
    EpochRates,
    MomentumSGD,
    build_optimizer,
    rates_at,
    set_rates,
    with_drops,
)
from alexnet.variants import with_second_phase

RATES = [0.01, 0.01, 0.01, 0.001, 0.001, 0.0001, 0.0001]
"""Of seven steps, with drops after the third and the fifth."""


def gradients(count: int = len(RATES), size: int = 12) -> list[np.ndarray]:
    random = np.random.default_rng(5)
    return [random.normal(size=size) for _ in range(count)]


def initial_weights() -> np.ndarray:
    return np.random.default_rng(6).normal(size=12)


def test_update_before_and_after_drops() -> None:
    weight = nn.Parameter(torch.from_numpy(initial_weights()))
    group = {"params": [weight], "lr": 0.0, "momentum": 0.9, "weight_decay": 0.0005}
    optimizer = MomentumSGD([group])
    w, v = initial_weights(), np.zeros(12)
    for rate, gradient in zip(RATES, gradients(), strict=True):
        v = 0.9 * v - 0.0005 * rate * w - rate * gradient
        w = w + v
        optimizer.param_groups[0]["lr"] = rate
        weight.grad = torch.from_numpy(gradient)
        optimizer.step()
        np.testing.assert_allclose(weight.detach().numpy(), w, rtol=1e-13)
        np.testing.assert_allclose(optimizer.velocity(weight).numpy(), v, rtol=1e-12)


def test_torch_differs_after_a_drop_and_not_before() -> None:
    weights = [nn.Parameter(torch.from_numpy(initial_weights())) for _ in range(2)]
    group = {"params": weights[:1], "lr": 0.0, "momentum": 0.9, "weight_decay": 0.0005}
    optimizers = (
        MomentumSGD([group]),
        torch.optim.SGD(weights[1:], lr=0.1, momentum=0.9, weight_decay=0.0005),
    )
    differences = []
    for rate, gradient in zip(RATES, gradients(), strict=True):
        for optimizer, weight in zip(optimizers, weights, strict=True):
            optimizer.param_groups[0]["lr"] = rate
            weight.grad = torch.from_numpy(gradient)
            optimizer.step()
        differences.append(float((weights[0] - weights[1]).detach().abs().max()))
    assert max(differences[:3]) < 1e-15
    # After a drop the velocity of 2012 still contains the old rate.
    assert min(differences[3:]) > 0.005


def network() -> nn.ModuleDict:
    """A layer of each name, with two weights and one bias."""
    layers = {name: nn.Linear(2, 1).double() for name in LAYERS}
    return nn.ModuleDict({"towers": nn.ModuleList([nn.ModuleDict(layers)])})


@pytest.mark.parametrize(("recipe", "bias_rate"), [("paper", 1), ("source145", 2)])
@pytest.mark.parametrize(
    ("rates", "factors"),
    [
        (EpochRates(0.01), {}),
        (EpochRates(0.01, {"conv1": 0.1}), {"conv1": 0.1}),
        (EpochRates(0.01, {"conv1": 0.0, "fc8": 10.0}), {"conv1": 0.0, "fc8": 10.0}),
    ],
)
def test_every_layer_has_its_rates(
    recipe: str, bias_rate: int, rates: EpochRates, factors: Mapping[str, float]
) -> None:
    model = network()
    optimizer = build_optimizer(model, RECIPES[recipe])
    set_rates(optimizer, rates)
    random = np.random.default_rng(7)
    before, grads = {}, {}
    for name, parameter in model.named_parameters():
        grads[name] = random.normal(size=tuple(parameter.shape))
        before[name] = parameter.detach().numpy().copy()
        parameter.grad = torch.from_numpy(grads[name])
    optimizer.step()
    for name, parameter in model.named_parameters():
        rate = 0.01 * factors.get(name.split(".")[-2], 1.0)
        if name.endswith("bias"):
            expected = before[name] - rate * bias_rate * grads[name]
        else:
            expected = before[name] - rate * (grads[name] + 0.0005 * before[name])
        np.testing.assert_allclose(parameter.detach().numpy(), expected, rtol=1e-13, err_msg=name)


@pytest.mark.parametrize(
    ("epoch", "weights", "conv1", "biases", "conv1_biases"),
    [
        (0, 0.01, 0.01, 0.02, 0.02),
        (24, 0.001, 0.001, 0.02, 0.02),
        (65, 0.0001, 0.0001, 0.02, 0.02),
        (66, 0.0001, 0.00001, 0.02, 0.002),
        (71, 0.0001, 0.0, 0.02, 0.0),
        (90, 0.00001, 0.0, 0.02, 0.0),
    ],
)
def test_biases_of_the_source_keep_their_rate_except_in_conv1(
    epoch: int, weights: float, conv1: float, biases: float, conv1_biases: float
) -> None:
    recipe = RECIPES["source145"]
    optimizer = build_optimizer(network(), recipe)
    set_rates(optimizer, rates_at(recipe.schedule, 0.01, epoch, [50.0] * epoch))
    for group in optimizer.param_groups:
        if group["name"].endswith("bias"):
            expected = conv1_biases if "conv1" in group["name"] else biases
        else:
            expected = conv1 if "conv1" in group["name"] else weights
        assert group["lr"] == pytest.approx(expected, rel=1e-12), group["name"]


@pytest.mark.parametrize("drops", [None, [1, 2]])
def test_biases_of_the_paper_drop_with_the_weights(drops: list[int] | None) -> None:
    recipe = RECIPES["paper"]
    optimizer = build_optimizer(network(), recipe)
    schedule = with_drops(recipe.schedule, drops) if drops else recipe.schedule
    set_rates(optimizer, rates_at(schedule, 0.01, 12, [50.0] * 12))
    rates = [group["lr"] for group in optimizer.param_groups]
    assert rates == pytest.approx([1e-4] * len(rates))


def test_momentum_does_not_move_frozen_weights() -> None:
    # The 2012 source skips the whole update of weights whose rate is 0.
    model = network()
    optimizer = build_optimizer(model, RECIPES["source145"])
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    set_rates(optimizer, EpochRates(0.01))
    optimizer.step()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    set_rates(optimizer, EpochRates(0.01, {"conv1": 0.0}))
    optimizer.step()
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) == ("conv1" in name), name


def test_every_parameter_is_in_one_group() -> None:
    model = network()
    optimizer = build_optimizer(model, RECIPES["paper"])
    grouped = [weight for group in optimizer.param_groups for weight in group["params"]]
    assert sorted(map(id, grouped)) == sorted(map(id, model.parameters()))


@pytest.mark.parametrize(
    ("epoch", "rate", "conv1", "noise"),
    [
        (0, 1e-2, 1.0, True),
        (23, 1e-2, 1.0, True),
        (24, 1e-3, 1.0, True),
        (49, 1e-3, 1.0, True),
        (50, 1e-4, 1.0, True),
        (65, 1e-4, 1.0, True),
        (66, 1e-4, 0.1, False),
        (70, 1e-4, 0.1, False),
        (71, 1e-4, 0.0, False),
        (77, 1e-4, 0.0, False),
        (78, 1e-5, 0.0, False),
        (90, 1e-5, 0.0, False),
    ],
)
def test_schedule_of_the_source(epoch: int, rate: float, conv1: float, noise: bool) -> None:
    # ``epoch`` is the number of whole epochs before; the source counts from 1 (drops 25, 51, 79).
    schedule = RECIPES["source145"].schedule
    assert isinstance(schedule, StepSchedule)
    # The rates depend on the epoch alone, not on the errors.
    for errors in ([50.0] * epoch, [100.0 - e for e in range(epoch)]):
        rates = rates_at(schedule, 0.01, epoch, errors)
        assert rates.learning_rate == pytest.approx(rate, rel=1e-12)
        assert (rates.layers.get("conv1", 1.0), rates.colour_noise) == (conv1, noise)


def changes(recipe: Recipe) -> dict[int, tuple[float | bool, ...]]:
    """The rates of weights, conv1's weights and biases, and the noise, when they change."""
    return rate_changes(recipe, "conv1")


def test_schedules_of_the_ablations_are_those_of_their_logs() -> None:
    # Each line of a log is a row: layer-params-147.cfg, -148.cfg and -145-half.cfg.
    no_overlap = ablate(SOURCE145, overlapping_pooling=False)
    assert (no_overlap.epochs, changes(no_overlap)) == (
        90,
        {
            1: (0.01, 0.01, 0.01, True),
            23: (0.001, 0.001, 0.01, True),
            51: (0.0001, 0.0001, 0.01, True),
            79: (0.00001, 0.0, 0.001, True),
        },
    )
    no_norm = ablate(SOURCE145, normalization=False)
    assert (no_norm.epochs, changes(no_norm)) == (
        97,
        {
            1: (0.01, 0.01, 0.01, True),
            22: (0.001, 0.001, 0.01, True),
            44: (0.0001, 0.0001, 0.01, True),
            69: (0.0001, 0.00001, 0.01, False),
            73: (0.0001, 0.0, 0.01, False),
            86: (0.00001, 0.0, 0.01, False),
        },
    )
    one_tower = ablate(SOURCE145, towers=1)
    assert (one_tower.epochs, changes(one_tower)) == (
        96,
        {
            1: (0.01, 0.01, 0.01, True),
            20: (0.001, 0.001, 0.01, True),
            48: (0.0001, 0.0001, 0.01, True),
            66: (0.0001, 0.00001, 0.01, False),
            72: (0.0001, 0.0, 0.01, False),
        },
    )


def test_the_second_phase_of_the_source() -> None:
    recipe = with_second_phase(SOURCE145)
    first, second = changes(SOURCE145), changes(recipe)
    assert recipe.epochs == 135
    assert second == first | {
        92: (0.001, 0.0, 0.01, True),
        107: (0.0001, 0.0, 0.01, True),
        124: (0.00001, 0.0, 0.01, False),
    }


@pytest.mark.parametrize("recipe", RECIPES)
def test_drops_at_given_epochs(recipe: str) -> None:
    schedule = with_drops(RECIPES[recipe].schedule, [2, 4])
    rates = [rates_at(schedule, 0.02, epoch, [9.0] * epoch) for epoch in (0, 1, 2, 3, 4, 80)]
    assert [one.learning_rate for one in rates] == pytest.approx(
        [0.02] * 2 + [2e-3] * 2 + [2e-4] * 2
    )
    last = (0.0, False) if recipe == "source145" else (1.0, True)
    assert (rates[-1].layers.get("conv1", 1.0), rates[-1].colour_noise) == last
    assert (rates[0].layers, rates[0].colour_noise) == ({}, True)


def plateau_rates(errors: Sequence[float], schedule: PlateauSchedule | None = None) -> list[float]:
    """The learning rate of every epoch, including the one after the last error."""
    schedule = schedule or PlateauSchedule()
    return [
        rates_at(schedule, 0.01, epoch, errors[:epoch]).learning_rate
        for epoch in range(len(errors) + 1)
    ]


def test_the_rate_of_the_paper_drops_when_the_error_stalls() -> None:
    assert isinstance(RECIPES["paper"].schedule, PlateauSchedule)
    improving = [90.0 - epoch for epoch in range(20)]
    assert plateau_rates(improving) == [0.01] * 21
    # Epochs 0 to 3 are better than those before, the next five are not. So the rate of the tenth
    # epoch is lower.
    stalled = [90, 80, 70, 60, 61, 60, 65, 60, 62]
    assert plateau_rates(stalled) == pytest.approx([0.01] * 9 + [0.001])
    # A better epoch restarts the count.
    improved_in_time = [90, 80, 70, 60, 61, 60, 65, 60, 59, 62]
    assert plateau_rates(improved_in_time) == [0.01] * 11
    never_improved = plateau_rates([60.0] * 40)
    assert never_improved == pytest.approx([0.01] * 6 + [1e-3] * 5 + [1e-4] * 5 + [1e-5] * 25)


@given(
    st.lists(st.sampled_from([40.0, 41.0, 42.0, 43.0, 44.0, 45.0]), max_size=60),
    st.integers(1, 6),
)
def test_plateau_schedule_for_any_history(errors: list[float], patience: int) -> None:
    schedule = PlateauSchedule(patience=patience)
    rates = plateau_rates(errors, schedule)
    allowed = [0.01, 0.001, 0.0001, 0.00001]
    assert all(min(abs(rate / one - 1) for one in allowed) < 1e-9 for rate in rates)
    assert all(later <= earlier for earlier, later in itertools.pairwise(rates))
    drops = [e for e in range(1, len(rates)) if rates[e] < rates[e - 1]]
    assert len(drops) <= 3
    assert all(later - earlier >= patience for earlier, later in itertools.pairwise(drops))
    for drop in drops:
        # None of the last ``patience`` epochs is better than the ones before.
        stalled = errors[drop - patience : drop]
        assert min(stalled) >= min(errors[: drop - patience])
    no_drops_left = len(drops) == 3
    without_improvement = 0
    for epoch in range(1, len(errors) + 1):
        better = epoch == 1 or errors[epoch - 1] < min(errors[: epoch - 1])
        without_improvement = 0 if better or epoch in drops else without_improvement + 1
        assert without_improvement < patience or no_drops_left, "every stall causes a drop"
    assert rates == plateau_rates(errors, schedule)
