"""The update rule of 2012, its parameter groups and the learning rate over the epochs.

    v ← .9 v - .0005 ε w - ε g        w ← w + v        (paper, section 5)

In ``torch.optim.SGD`` v does not contain ε. Both rules agree while ε is constant. They differ after
every drop of ε, because the paper's v still contains the old rate.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from alexnet.recipes import Recipe
from alexnet.schedules import NEVER, PlateauSchedule, StepSchedule


@dataclass(frozen=True, slots=True)
class EpochRates:
    """The values that the schedule sets for one epoch."""

    learning_rate: float
    layers: Mapping[str, float] = field(default_factory=dict)
    """The rates of some layers as multiples of the others'."""
    colour_noise: bool = True
    biases: float | None = None
    """Learning rate of the biases, or None for ``learning_rate``. ``layers`` applies to it, too."""


class MomentumSGD(torch.optim.Optimizer):
    """The update rule above. Each group has ``lr`` (ε), ``momentum`` and ``weight_decay``."""

    def __init__(self, groups: list[dict[str, Any]]) -> None:
        super().__init__(groups, {"lr": 0.0, "momentum": 0.0, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update every parameter from its gradient."""
        assert closure is None
        for group in self.param_groups:
            rate = group["lr"]
            if rate == 0:  # Frozen weights are not moved by momentum either (145).
                continue
            for weight in group["params"]:
                _update_for(weight)(
                    weight,
                    self.velocity(weight),
                    weight.grad,
                    momentum=group["momentum"],
                    decay=group["weight_decay"] * rate,
                    rate=rate,
                )

    def velocity(self, weight: nn.Parameter) -> Tensor:
        """v of one parameter, on its device; zero before the first step."""
        state = self.state[weight]
        if "velocity" not in state:
            state["velocity"] = torch.zeros_like(weight)
        return state["velocity"]  # type: ignore[no-any-return]


def update_by_torch_operations(
    weight: Tensor,
    velocity: Tensor,
    gradient: Tensor,
    *,
    momentum: float,
    decay: float,
    rate: float,
) -> None:
    """v ← momentum · v - decay · w - rate · g, then w ← w + v, in place, on any device."""
    velocity.mul_(momentum)
    velocity.add_(weight, alpha=-decay)
    velocity.add_(gradient, alpha=-rate)
    weight.add_(velocity)


def _update_for(weight: nn.Parameter) -> Callable[..., None]:
    """The implementation of the update for a parameter on its device."""
    gradient = weight.grad
    assert gradient is not None
    fits = (
        weight.device.type == "cuda"
        and weight.dtype == gradient.dtype == torch.float32
        and gradient.stride() == weight.stride()
    )
    return (_fused_update() if fits else None) or update_by_torch_operations


@functools.cache
def _fused_update() -> Callable[..., None] | None:
    """The update as one kernel; None where Triton is not installed."""
    try:
        from alexnet.kernels.momentum import update_in_one_pass
    except ImportError:
        return None
    return update_in_one_pass


def build_optimizer(model: nn.Module, recipe: Recipe) -> MomentumSGD:
    """One group per parameter. Weights have weight decay; biases don't, and have their own rate."""
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
    """Set every group's learning rate."""
    for group in optimizer.param_groups:
        own_rate = rates.biases if group["bias"] else None
        rate = rates.learning_rate if own_rate is None else own_rate
        group["lr"] = rate * rates.layers.get(group["layer"], 1.0) * group["rate"]


def rates_at(
    schedule: PlateauSchedule | StepSchedule,
    learning_rate: float,
    epoch: int,
    errors: Sequence[float],
) -> EpochRates:
    """The rates of an epoch (from 0), given the validation errors after each earlier epoch.

    It is a pure function, so a resumed run has the same rates as an uninterrupted one.
    """
    assert len(errors) == epoch
    if isinstance(schedule, StepSchedule):
        number = epoch + 1  # A schedule counts from 1.
        drops = sum(number >= drop for drop in schedule.drops)
        changes = [change for change in schedule.layer_rates if number >= change.first_epoch]
        layers = {change.layer: change.factor for change in changes}
        noise = number < schedule.colour_noise_until
        biases = learning_rate * schedule.factor ** sum(number >= d for d in schedule.bias_drops)
        second = schedule.second_phase
        if second and number >= second.first_epoch:
            learning_rate *= second.rate
            drops = sum(number >= drop for drop in second.drops)
            noise = number < second.colour_noise_until
        return EpochRates(learning_rate * schedule.factor**drops, layers, noise, biases)
    drops = min(_stalls(errors, schedule.patience), schedule.drops)
    return EpochRates(learning_rate * schedule.factor**drops)


def apply_warmup(rates: EpochRates, seen: int, over: int) -> EpochRates:
    """The rates during warm-up: they rise linearly over the first ``over`` rows.

    The training of 2012 had no warm-up. It helps with large batches and large learning rates.

    Args:
        rates: of the epoch.
        seen: training rows of all epochs so far, including those of the next update.
        over: 0 for no warm-up.
    """
    if seen >= over:
        return rates
    fraction = seen / over
    biases = None if rates.biases is None else rates.biases * fraction
    return replace(rates, learning_rate=rates.learning_rate * fraction, biases=biases)


def with_drops(schedule: PlateauSchedule | StepSchedule, drops: Sequence[int]) -> StepSchedule:
    """A copy of a schedule that drops the rate after these numbers of whole epochs."""
    first_epochs = tuple(drop + 1 for drop in drops)
    if isinstance(schedule, StepSchedule):
        return replace(schedule, drops=first_epochs)
    return StepSchedule(
        factor=schedule.factor,
        drops=first_epochs,
        bias_drops=first_epochs,
        layer_rates=(),
        colour_noise_until=NEVER,
    )


def _stalls(errors: Sequence[float], patience: int) -> int:
    """How often ``patience`` epochs in a row had no better error. Each time restarts the count."""
    stalls, epochs_without_improvement, best = 0, 0, float("inf")
    for error in errors:
        if error < best:
            best, epochs_without_improvement = error, 0
        else:
            epochs_without_improvement += 1
            if epochs_without_improvement == patience:
                stalls, epochs_without_improvement = stalls + 1, 0
    return stalls
