"""Exponential moving average (EMA) of the weights, for validation and for the final model.

    a ← k a + (1 - k) w        with k = min(decay, (1 + t) / (10 + t)) after update t

The smaller decay at the start reduces the influence of the initial weights on a short run's
average. The networks of 2012 had no EMA. The average depends only on the weights and the number of
the update, so a resumed run has the same average as an uninterrupted one.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class EMA:
    """The average of one model's parameters, each on its parameter's device."""

    weights: dict[str, Tensor]
    """By the parameters' names."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.weights = {name: p.detach().clone() for name, p in model.named_parameters()}

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Include the weights after update number ``step``; the first update is number 1."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, parameter in model.named_parameters():
            self.weights[name].lerp_(parameter, 1 - decay)

    @contextmanager
    def swapped(self, model: nn.Module) -> Iterator[None]:
        """A context in which the model has the averaged weights. It must not be trained there."""
        self._swap(model)
        try:
            yield
        finally:
            self._swap(model)

    def _swap(self, model: nn.Module) -> None:
        for name, parameter in model.named_parameters():
            trained = parameter.data
            parameter.data = self.weights[name]
            self.weights[name] = trained
