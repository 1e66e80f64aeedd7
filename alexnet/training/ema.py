"""A running average of the weights, to be judged and kept in their place.

    a ← k a + (1 - k) w        with k = min(decay, (1 + t) / (10 + t)) after update t

The ramp keeps the initial weights from weighing on a short run's average. Nothing of this is of
2012. It is a function of the weights and the update's number alone, so that a resumed run
averages as an unbroken one.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class EMA:
    """The average of one model's parameters, each where its parameter lies."""

    weights: dict[str, Tensor]
    """By the parameters' names."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.weights = {name: p.detach().clone() for name, p in model.named_parameters()}

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Take in the weights after update number ``step``, from 1."""
        kept = min(self.decay, (1 + step) / (10 + step))
        for name, parameter in model.named_parameters():
            self.weights[name].lerp_(parameter, 1 - kept)

    @contextmanager
    def in_place(self, model: nn.Module) -> Iterator[None]:
        """Inside, the model has the averaged weights; nothing may learn meanwhile."""
        self._exchange(model)
        try:
            yield
        finally:
            self._exchange(model)

    def _exchange(self, model: nn.Module) -> None:
        for name, parameter in model.named_parameters():
            own = parameter.data
            parameter.data = self.weights[name]
            self.weights[name] = own
