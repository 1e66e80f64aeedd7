"""A training run on disk: weights, momentum and the position in the data; plain tensors and JSON.

A checkpoint is a folder:

    model.safetensors       weights by name (``towers.0.conv1.weight`` ...); in its header, under
                            ``recipe``, the numbers the network was built from, as JSON
    velocity.safetensors    the optimizer's v by the same names
    average.safetensors     the averaged weights by the same names, if the run averages them
    mean.safetensors        ``mean``, (3, 224, 224): what is subtracted from every patch
    position.json           epoch, offset, step, what was measured so far

There is no generator's state: every random number is drawn from (seed, epoch, offset, rank).
Weights are named by tower, not by device, so a checkpoint of two GPUs loads on one CPU.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from alexnet import storage
from alexnet.errors import UserError
from alexnet.metrics import Errors
from alexnet.optimizer import MomentumSGD
from alexnet.towers import AlexNet

FUNCTION = ("cross_map", "within_map", "norm1_before_relu", "pool_size")
"""What of a recipe changes the network as a function, but no weight's shape."""


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


def save(
    folder: str,
    model: AlexNet,
    optimizer: MomentumSGD,
    position: Position,
    mean: Tensor,
    average: Mapping[str, Tensor] | None = None,
) -> None:
    """Write a checkpoint into an existing, empty local folder; ``position.json`` comes last."""
    named = dict(model.named_parameters())
    recipe = json.dumps(asdict(model.recipe))
    _write(folder, "model.safetensors", named, {"recipe": recipe})
    velocity = {name: optimizer.velocity(parameter) for name, parameter in named.items()}
    _write(folder, "velocity.safetensors", velocity)
    if average is not None:
        _write(folder, "average.safetensors", average)
    _write(folder, "mean.safetensors", {"mean": mean})
    with open(os.path.join(folder, "position.json"), "w") as file:
        json.dump(asdict(position), file, indent=2)


def load(
    folder: str,
    model: AlexNet,
    optimizer: MomentumSGD,
    average: Mapping[str, Tensor] | None = None,
) -> Position:
    """Put a checkpoint's weights and momentum where the model's parameters lie.

    ``average``: tensors by the parameters' names, which the averaged weights are copied into.

    Raises:
        UserError: the checkpoint is damaged or belongs to another network.
    """
    load_weights(folder, model)
    velocity = _read_like(folder, "velocity.safetensors", model)
    for name, parameter in model.named_parameters():
        optimizer.velocity(parameter).copy_(velocity[name])
    if average is not None:
        stored = _read_like(folder, "average.safetensors", model)
        for name, tensor in average.items():
            tensor.copy_(stored[name])
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


def load_weights(folder: str, model: AlexNet, *, averaged: bool = False) -> None:
    """Put only a checkpoint's weights, or the averaged ones, into a model.

    Raises:
        UserError: the checkpoint is damaged or belongs to another network.
    """
    stored = read_recipe(folder)
    # As JSON on both sides, where a tuple is a list.
    own = json.loads(json.dumps(asdict(model.recipe)))
    for key in FUNCTION:
        if stored.get(key) != own[key]:
            raise UserError(
                f"{folder}: belongs to another network ({key} is {stored.get(key)}, not {own[key]})"
            )
    file = "average.safetensors" if averaged else "model.safetensors"
    weights = _read_like(folder, file, model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(weights[name])


def read_recipe(folder: str) -> dict[str, Any]:
    """The numbers of the recipe a checkpoint's network was built from, by ``Recipe``'s names.

    Raises:
        UserError: the checkpoint is damaged.
    """
    path = os.path.join(folder, "model.safetensors")
    try:
        with safe_open(path, "pt") as file:
            return dict(json.loads(file.metadata()["recipe"]))
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise _damaged(path, error) from error


def read_tensors(folder: str, name: str) -> dict[str, Tensor]:
    """The tensors of one of the checkpoint's files, on the CPU.

    Raises:
        UserError: the file is missing or damaged.
    """
    path = os.path.join(folder, name)
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise _damaged(path, error) from error


def _read_like(folder: str, name: str, model: AlexNet) -> dict[str, Tensor]:
    tensors = read_tensors(folder, name)
    shapes = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
    if shapes != {key: tuple(p.shape) for key, p in model.named_parameters()}:
        path = os.path.join(folder, name)
        raise UserError(f"{path}: belongs to another network (names or shapes differ)")
    return tensors


def _write(
    folder: str,
    name: str,
    tensors: Mapping[str, Tensor],
    metadata: dict[str, str] | None = None,
) -> None:
    plain = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
    save_file(plain, os.path.join(folder, name), metadata)


def _damaged(path: str, error: Exception) -> UserError:
    return UserError(
        f"{path}: the checkpoint can't be read ({storage.one_line(error)}); "
        "delete its folder to go on from an older one"
    )
