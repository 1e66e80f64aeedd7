"""A training run on disk: weights, momentum and the position in the data; plain tensors and JSON.

A checkpoint is a folder:

    model.safetensors       weights by name (``towers.0.conv1.weight`` ...)
    velocity.safetensors    the optimizer's v by the same names
    position.json           epoch, offset, step, what was measured so far

There is no generator's state: every random number is drawn from (seed, epoch, offset, rank).
Weights are named by tower, not by device, so a checkpoint of two GPUs loads on one CPU.
"""

import json
import os
from dataclasses import asdict, dataclass, field

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from alexnet import storage
from alexnet.errors import UserError
from alexnet.metrics import Errors
from alexnet.optimizer import MomentumSGD
from alexnet.towers import AlexNet


@dataclass(slots=True, kw_only=True)
class Position:
    """Where in its training a network stands."""

    epoch: int = 0
    """Epochs finished."""
    offset: int = 0
    """Rows of the present epoch already learned from."""
    step: int = 0
    """Updates made."""
    epoch_errors: Errors = field(default_factory=Errors)
    """What the present epoch's training batches gave so far, over all workers."""
    history: list[dict[str, float]] = field(default_factory=list)
    """One record for each finished epoch."""


def save(folder: str, model: AlexNet, optimizer: MomentumSGD, position: Position) -> None:
    """Write a checkpoint into an existing, empty local folder; ``position.json`` comes last."""
    named = dict(model.named_parameters())
    weights = {name: p.detach().cpu().contiguous() for name, p in named.items()}
    velocity = {name: optimizer.velocity(p).cpu().contiguous() for name, p in named.items()}
    save_file(weights, os.path.join(folder, "model.safetensors"))
    save_file(velocity, os.path.join(folder, "velocity.safetensors"))
    with open(os.path.join(folder, "position.json"), "w") as file:
        json.dump(asdict(position), file, indent=2)


def load(folder: str, model: AlexNet, optimizer: MomentumSGD) -> Position:
    """Put a checkpoint's weights and momentum where the model's parameters lie.

    Raises:
        UserError: the checkpoint is damaged or belongs to another network.
    """
    load_weights(folder, model)
    velocity = _tensors(folder, "velocity.safetensors", model)
    for name, parameter in model.named_parameters():
        optimizer.velocity(parameter).copy_(velocity[name])
    return load_position(folder)


def load_position(folder: str) -> Position:
    """Where the training stood when the checkpoint was written.

    Raises:
        UserError: ``position.json`` is missing or damaged.
    """
    path = os.path.join(folder, "position.json")
    try:
        with open(path) as file:
            value = json.load(file)
        return Position(**(value | {"epoch_errors": Errors(**value["epoch_errors"])}))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _damaged(path, error) from error


def load_weights(folder: str, model: AlexNet) -> None:
    """Put only a checkpoint's weights into a model.

    Raises:
        UserError: the checkpoint is damaged or belongs to another network.
    """
    weights = _tensors(folder, "model.safetensors", model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(weights[name])


def _tensors(folder: str, name: str, model: AlexNet) -> dict[str, torch.Tensor]:
    path = os.path.join(folder, name)
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise _damaged(path, error) from error
    shapes = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
    if shapes != {key: tuple(p.shape) for key, p in model.named_parameters()}:
        raise UserError(f"{path}: belongs to another network (names or shapes differ)")
    return tensors


def _damaged(path: str, error: Exception) -> UserError:
    return UserError(
        f"{path}: the checkpoint can't be read ({storage.one_line(error)}); "
        "delete its folder to go on from an older one"
    )
