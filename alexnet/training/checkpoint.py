"""A training run on disk: weights, momentum and the position in the data; plain tensors and JSON.

A checkpoint is a folder:

    model.safetensors       weights by name (``towers.0.conv1.weight`` ...); in its header, under
                            ``recipe``, the numbers the network was built from, as JSON
    velocity.safetensors    the optimizer's v by the same names
    average.safetensors     the averaged weights by the same names, if the run averages them
    mean.safetensors        ``mean``, (3, 224, 224): what is subtracted from every patch
    position.json           epoch, offset, step, what was measured so far, and the sha256 of each
                            of the other files

There is no generator's state: every random number is drawn from (seed, epoch, offset, rank).
Weights are named by tower, not by device, so a checkpoint of two GPUs loads on one CPU.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from alexnet import storage
from alexnet.errors import UserError, one_line
from alexnet.metrics import Errors
from alexnet.model.towers import AlexNet
from alexnet.training.optimizer import MomentumSGD

ARCHITECTURE_FIELDS = ("cross_map", "within_map", "norm1_before_relu", "pool_size")
"""What of a recipe changes the network as a function, but no weight's shape."""


@dataclass(slots=True, kw_only=True)
class TrainState:
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
    pending_metrics: Sequence[tuple[int, int, Mapping[str, float]]] = field(default_factory=list)
    """Step, milliseconds since 1970 and values of the curves' points that are nowhere else yet."""


class Snapshot(NamedTuple):
    """A training's state at one moment, copied to the CPU: what ``save`` writes."""

    weights: dict[str, Tensor]
    velocity: dict[str, Tensor]
    average: dict[str, Tensor] | None
    mean: Tensor
    recipe: str
    """As JSON."""
    position: dict[str, Any]


def snapshot(
    model: AlexNet,
    optimizer: MomentumSGD,
    position: TrainState,
    mean: Tensor,
    average: Mapping[str, Tensor] | None = None,
) -> Snapshot:
    """Copy everything, so that the training can go on while the copy is written."""
    named = dict(model.named_parameters())
    return Snapshot(
        weights=_copies(named),
        velocity=_copies({name: optimizer.velocity(p) for name, p in named.items()}),
        average=None if average is None else _copies(average),
        mean=_copies({"mean": mean})["mean"],
        recipe=json.dumps(asdict(model.recipe)),
        position=asdict(position),
    )


def save(folder: str, taken: Snapshot) -> None:
    """Write a checkpoint into an existing, empty local folder; ``position.json`` comes last.

    Raises:
        OSError: there is no room, or the folder can't be written to.
    """
    try:
        _write(folder, "model", taken.weights, {"recipe": taken.recipe})
        _write(folder, "velocity", taken.velocity)
        if taken.average is not None:
            _write(folder, "average", taken.average)
        _write(folder, "mean", {"mean": taken.mean})
    except SafetensorError as error:  # What it says of a full disk.
        raise OSError(str(error)) from error
    names = sorted(os.listdir(folder))
    files = {name: storage.sha256(os.path.join(folder, name)) for name in names}
    with open(os.path.join(folder, "position.json"), "w") as file:
        json.dump(taken.position | {"files": files}, file, indent=2)


def load(
    folder: str,
    model: AlexNet,
    optimizer: MomentumSGD,
    average: Mapping[str, Tensor] | None = None,
) -> TrainState:
    """Put a checkpoint's weights and momentum where the model's parameters lie.

    ``average``: tensors by the parameters' names, which the averaged weights are copied into.

    Raises:
        UserError: the checkpoint is damaged or belongs to another network.
    """
    position, files = _read_position(folder)
    _verify(folder, files)
    load_weights(folder, model)
    velocity = _read_like(folder, "velocity.safetensors", model)
    for name, parameter in model.named_parameters():
        optimizer.velocity(parameter).copy_(velocity[name])
    if average is not None:
        stored = _read_like(folder, "average.safetensors", model)
        for name, tensor in average.items():
            tensor.copy_(stored[name])
    return position


def load_position(folder: str) -> TrainState:
    """Where the training stood when the checkpoint was written.

    Raises:
        UserError: ``position.json`` is missing or damaged.
    """
    position, _ = _read_position(folder)
    return position


def load_weights(folder: str, model: AlexNet, *, averaged: bool = False) -> None:
    """Put only a checkpoint's weights, or the averaged ones, into a model.

    Raises:
        UserError: the checkpoint is damaged or belongs to another network.
    """
    stored = read_recipe(folder)
    # As JSON on both sides, where a tuple is a list.
    own = json.loads(json.dumps(asdict(model.recipe)))
    for key in ARCHITECTURE_FIELDS:
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
        raise _damaged(path, one_line(error)) from error


def read_tensors(folder: str, name: str) -> dict[str, Tensor]:
    """The tensors of one of the checkpoint's files, on the CPU.

    Raises:
        UserError: the file is missing or damaged.
    """
    path = os.path.join(folder, name)
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise _damaged(path, one_line(error)) from error


def _read_position(folder: str) -> tuple[TrainState, dict[str, str]]:
    """The position, and the sha256 of each of the other files."""
    path = os.path.join(folder, "position.json")
    try:
        with open(path) as file:
            value = json.load(file)
        files = value.pop("files")
        return TrainState(**(value | {"epoch_errors": Errors(**value["epoch_errors"])})), files
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _damaged(path, one_line(error)) from error


def _verify(folder: str, files: Mapping[str, str]) -> None:
    for name, sha256 in files.items():
        path = os.path.join(folder, name)
        try:
            found = storage.sha256(path)
        except OSError as error:
            raise _damaged(path, one_line(error)) from error
        if found != sha256:
            raise _damaged(path, "its bytes are not those that were written")


def _read_like(folder: str, name: str, model: AlexNet) -> dict[str, Tensor]:
    tensors = read_tensors(folder, name)
    shapes = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
    if shapes != {key: tuple(p.shape) for key, p in model.named_parameters()}:
        path = os.path.join(folder, name)
        raise UserError(f"{path}: belongs to another network (names or shapes differ)")
    return tensors


def _copies(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {
        name: torch.empty(tensor.shape, dtype=tensor.dtype).copy_(tensor.detach())
        for name, tensor in tensors.items()
    }


def _write(
    folder: str, name: str, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None
) -> None:
    save_file(tensors, os.path.join(folder, f"{name}.safetensors"), metadata)


def _damaged(path: str, reason: str) -> UserError:
    return UserError(f"{path}: the checkpoint can't be read ({reason})")
