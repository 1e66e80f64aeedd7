"""The 2012 update, its parameter groups and the learning rate over the epochs.

    v ← .9 v - .0005 ε w - ε g        w ← w + v        (paper, section 5)

``torch.optim.SGD`` keeps ε outside v: the two agree while ε stands still and differ after every
drop, when the paper's momentum still carries the old rate.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from alexnet.recipes import PlateauSchedule, Recipe, StepSchedule


@dataclass(frozen=True, slots=True)
class EpochRates:
    """What the schedule sets for one epoch."""

    learning_rate: float
    conv1: float = 1.0
    """conv1's rate as a multiple of the others'."""
    colour_noise: bool = True
    biases: float | None = None
    """Takes the place of ``learning_rate`` for biases, if theirs does not fall with the weights';
    conv1's are frozen, but not slowed, with its weights."""


class MomentumSGD(torch.optim.Optimizer):
    """The update above. Each group gives ``lr`` (ε), ``momentum`` and ``weight_decay``."""

    def __init__(self, groups: list[dict[str, Any]]) -> None:
        super().__init__(groups, {"lr": 0.0, "momentum": 0.0, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update every parameter from its gradient."""
        assert closure is None
        for group in self.param_groups:
            rate = group["lr"]
            if rate == 0:  # Frozen: momentum alone moves nothing either (145).
                continue
            for weight in group["params"]:
                velocity = self.velocity(weight)
                velocity.mul_(group["momentum"])
                velocity.add_(weight, alpha=-group["weight_decay"] * rate)
                velocity.add_(weight.grad, alpha=-rate)
                weight.add_(velocity)

    def velocity(self, weight: nn.Parameter) -> Tensor:
        """v of one parameter, on its device; zero before the first step."""
        state = self.state[weight]
        if "velocity" not in state:
            state["velocity"] = torch.zeros_like(weight)
        return state["velocity"]  # type: ignore[no-any-return]


def build_optimizer(model: nn.Module, recipe: Recipe) -> MomentumSGD:
    """Groups by layer and kind: weights decay, biases don't and may learn at another rate."""
    groups = []
    for name, parameter in model.named_parameters():
        layer, kind = name.split(".")[-2:]
        bias = kind == "bias"
        groups.append(
            {
                "params": [parameter],
                "name": name,
                "layer": layer,
                "bias": bias,
                "rate": recipe.bias_rate if bias else 1.0,
                "momentum": recipe.momentum,
                "weight_decay": 0.0 if bias else recipe.weight_decay,
            }
        )
    return MomentumSGD(groups)


def set_rates(optimizer: MomentumSGD, rates: EpochRates) -> None:
    """Give every group its rate for the coming epoch."""
    for group in optimizer.param_groups:
        rate = rates.learning_rate * (rates.conv1 if group["layer"] == "conv1" else 1.0)
        if group["bias"] and rates.biases is not None and rate > 0:
            rate = rates.biases
        group["lr"] = rate * group["rate"]


def rates_at(
    schedule: PlateauSchedule | StepSchedule,
    learning_rate: float,
    epoch: int,
    errors: Sequence[float],
) -> EpochRates:
    """The rates of an epoch (from 0), given the validation errors after each epoch before it.

    A pure function of the past, so that a resumed run schedules as an unbroken one.
    """
    assert len(errors) == epoch
    if isinstance(schedule, StepSchedule):
        drops = sum(epoch >= drop for drop in schedule.drops)
        if epoch >= schedule.conv1_frozen_from:
            conv1 = 0.0
        else:
            conv1 = 0.1 if epoch >= schedule.conv1_slow_from else 1.0
        noise = epoch < schedule.colour_noise_until
        biases = None if schedule.biases_drop else learning_rate
        return EpochRates(learning_rate * schedule.factor**drops, conv1, noise, biases)
    drops = min(_stalls(errors, schedule.patience), schedule.drops)
    return EpochRates(learning_rate * schedule.factor**drops)


def apply_warmup(rates: EpochRates, seen: int, over: int) -> EpochRates:
    """The rates on their way up: they rise linearly while the first ``over`` rows are seen.

    Not of 2012, but of use where many workers share a large batch and the rate is large with it.

    Args:
        rates: of the epoch.
        seen: rows seen in all epochs so far, those of the coming update included.
        over: 0 for no warm-up.
    """
    if seen >= over:
        return rates
    part = seen / over
    biases = None if rates.biases is None else rates.biases * part
    return replace(rates, learning_rate=rates.learning_rate * part, biases=biases)


def with_drops(schedule: PlateauSchedule | StepSchedule, drops: Sequence[int]) -> StepSchedule:
    """A schedule with drops after these epochs; the rest of what it says stays."""
    if isinstance(schedule, StepSchedule):
        return replace(schedule, drops=tuple(drops))
    never = 10**9
    return StepSchedule(
        factor=schedule.factor,
        drops=tuple(drops),
        biases_drop=True,
        conv1_slow_from=never,
        conv1_frozen_from=never,
        colour_noise_until=never,
    )


def _stalls(errors: Sequence[float], patience: int) -> int:
    """How often ``patience`` epochs went by without a better error; each stall starts a count."""
    stalls, waited, best = 0, 0, float("inf")
    for error in errors:
        if error < best:
            best, waited = error, 0
        else:
            waited += 1
            if waited == patience:
                stalls, waited = stalls + 1, 0
    return stalls
