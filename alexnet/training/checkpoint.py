"""A training run on disk: weights, momentum and progress, as plain tensors and JSON.

A checkpoint is a folder:

    model.safetensors       weights by name (``towers.0.conv1.weight`` ...); its header contains the
                            recipe as JSON, under ``recipe``
    velocity.safetensors    the optimizer's v by the same names
    average.safetensors     the averaged weights by the same names, if the run averages them
    mean.safetensors        ``mean``, (3, 224, 224): subtracted from every crop
    train_state.json        epoch, offset, step, the metrics so far, and the sha256 of each of the
                            other files

It contains no random generator's state: each random number depends on (seed, epoch, offset, rank)
alone. Weights are named by tower, not by device, so a checkpoint of two GPUs loads on one CPU.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from alexnet import storage
from alexnet.errors import UserError, one_line
from alexnet.metrics import LossAndErrors
from alexnet.model.towers import AlexNet
from alexnet.recipes import Recipe
from alexnet.training.optimizer import MomentumSGD

MODEL_FILE = "model.safetensors"
VELOCITY_FILE = "velocity.safetensors"
AVERAGE_FILE = "average.safetensors"
MEAN_FILE = "mean.safetensors"
STATE_FILE = "train_state.json"

ARCHITECTURE_FIELDS = (
    "cross_map",
    "within_map",
    "norm1_before_relu",
    "pool_size",
    "pool_ceil",
    "conv1_padding",
    "conv2_padding",
    "conv5_padding",
)
"""The fields of a recipe that change the network's function but not the shapes of its weights."""


@dataclass(slots=True, kw_only=True)
class TrainState:
    """The progress of a training run."""

    epoch: int = 0
    """Epochs finished."""
    offset: int = 0
    """Rows of the current epoch that have been trained on."""
    step: int = 0
    """Updates so far."""
    epoch_errors: LossAndErrors = field(default_factory=LossAndErrors)
    """Sums over the current epoch's training batches so far, over all workers."""
    history: list[dict[str, float]] = field(default_factory=list)
    """The metrics of each finished epoch."""
    pending_metrics: Sequence[tuple[int, int, Mapping[str, float]]] = field(default_factory=list)
    """Metrics that are not yet in the tracking store: step, milliseconds since 1970, values."""


class Snapshot(NamedTuple):
    """A copy of a training run on the CPU, which ``save_checkpoint`` writes."""

    weights: dict[str, Tensor]
    velocity: dict[str, Tensor]
    average: dict[str, Tensor] | None
    mean: Tensor
    recipe: str
    """As JSON."""
    state: dict[str, Any]
    """The fields of ``TrainState``."""


def take_snapshot(
    model: AlexNet,
    optimizer: MomentumSGD,
    state: TrainState,
    mean: Tensor,
    average: Mapping[str, Tensor] | None = None,
) -> Snapshot:
    """Copy everything, so that the training can continue while the copy is written."""
    named = dict(model.named_parameters())
    return Snapshot(
        weights=_copies(named),
        velocity=_copies({name: optimizer.velocity(p) for name, p in named.items()}),
        average=None if average is None else _copies(average),
        mean=_copies({"mean": mean})["mean"],
        recipe=json.dumps(asdict(model.recipe)),
        state=asdict(state),
    )


def save_checkpoint(folder: str, snapshot: Snapshot) -> None:
    """Write a checkpoint into an existing, empty local folder; ``train_state.json`` is last.

    Raises:
        OSError: the disk is full, or the folder is not writable.
    """
    try:
        _write(folder, MODEL_FILE, snapshot.weights, {"recipe": snapshot.recipe})
        _write(folder, VELOCITY_FILE, snapshot.velocity)
        if snapshot.average is not None:
            _write(folder, AVERAGE_FILE, snapshot.average)
        _write(folder, MEAN_FILE, {"mean": snapshot.mean})
    except SafetensorError as error:  # Raised for a full disk.
        raise OSError(str(error)) from error
    names = sorted(os.listdir(folder))
    files = {name: storage.sha256(os.path.join(folder, name)) for name in names}
    with open(os.path.join(folder, STATE_FILE), "w") as file:
        json.dump(snapshot.state | {"files": files}, file, indent=2)


def load_checkpoint(
    folder: str,
    model: AlexNet,
    optimizer: MomentumSGD,
    average: Mapping[str, Tensor] | None = None,
) -> TrainState:
    """Load a checkpoint's weights and momentum, onto the devices of the model's parameters.

    ``average``: tensors by the parameters' names; the averaged weights are copied into them.

    Raises:
        UserError: the checkpoint is damaged or belongs to another network.
    """
    state = verify_checkpoint(folder)
    load_weights(folder, model)
    velocity = _read_matching(folder, VELOCITY_FILE, model)
    for name, parameter in model.named_parameters():
        optimizer.velocity(parameter).copy_(velocity[name])
    if average is not None:
        stored = _read_matching(folder, AVERAGE_FILE, model)
        for name, tensor in average.items():
            tensor.copy_(stored[name])
    return state


def verify_checkpoint(folder: str) -> TrainState:
    """Compare all files of a local checkpoint with their sha256; returns its progress.

    Raises:
        UserError: the checkpoint is damaged.
    """
    state, files = _read_train_state(folder)
    for name, sha256 in files.items():
        path = os.path.join(folder, name)
        try:
            actual = storage.sha256(path)
        except OSError as error:
            raise _damaged(path, one_line(error)) from error
        if actual != sha256:
            raise _damaged(path, "its bytes are not those that were written")
    return state


def load_train_state(folder: str) -> TrainState:
    """The progress of the training when the checkpoint was written.

    Raises:
        UserError: ``train_state.json`` is missing or damaged.
    """
    state, _ = _read_train_state(folder)
    return state


def load_weights(folder: str, model: AlexNet, *, averaged: bool = False) -> None:
    """Load only a checkpoint's weights, or its averaged weights, into a model.

    Raises:
        UserError: the checkpoint is damaged or belongs to another network.
    """
    check_architecture(folder, model.recipe)
    name = AVERAGE_FILE if averaged else MODEL_FILE
    weights = _read_matching(folder, name, model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(weights[name])


def check_architecture(folder: str, recipe: Recipe) -> None:
    """Raise a ``UserError`` if a checkpoint's network is another function, for equal shapes."""
    stored = read_recipe(folder)
    # Converted to JSON and back like the stored one: a tuple becomes a list.
    own = json.loads(json.dumps(asdict(recipe)))
    for key in ARCHITECTURE_FIELDS:
        if stored.get(key) != own[key]:
            raise UserError(
                f"{folder}: belongs to another network ({key} is {stored.get(key)}, not {own[key]})"
            )


def read_network(folder: str) -> dict[str, Tensor]:
    """Weights of a training by name, averaged ones if there are any; as ``read_tensors``."""
    averaged = os.path.exists(os.path.join(folder, AVERAGE_FILE))
    return read_tensors(folder, AVERAGE_FILE if averaged else MODEL_FILE)


def read_mean(folder: str) -> Tensor:
    """(3, 224, 224), which the network subtracts from every crop; as ``read_tensors``."""
    return read_tensors(folder, MEAN_FILE)["mean"]


def read_recipe(folder: str) -> dict[str, Any]:
    """The recipe of a checkpoint's network, by the field names of ``Recipe``.

    Fields that did not exist when the checkpoint was written have their default: the network of
    that time.

    Raises:
        UserError: the checkpoint is damaged.
    """
    path = os.path.join(folder, MODEL_FILE)
    try:
        with safe_open(path, "pt") as file:
            stored = dict(json.loads(file.metadata()["recipe"]))
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise _damaged(path, one_line(error)) from error
    defaults = {one.name: one.default for one in fields(Recipe) if one.default is not MISSING}
    # Converted to JSON and back like the stored fields: a tuple becomes a list.
    return json.loads(json.dumps(defaults)) | stored  # type: ignore[no-any-return]


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


def _read_train_state(folder: str) -> tuple[TrainState, dict[str, str]]:
    """The state, and the sha256 of each of the other files."""
    path = os.path.join(folder, STATE_FILE)
    try:
        with open(path) as file:
            values = json.load(file)
        files = values.pop("files")
        values["epoch_errors"] = LossAndErrors(**values["epoch_errors"])
        return TrainState(**values), files
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _damaged(path, one_line(error)) from error


def _read_matching(folder: str, name: str, model: AlexNet) -> dict[str, Tensor]:
    """The tensors of a file, which must have the names and shapes of the model's parameters."""
    tensors = read_tensors(folder, name)
    shapes = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
    if shapes != {key: tuple(p.shape) for key, p in model.named_parameters()}:
        path = os.path.join(folder, name)
        raise UserError(f"{path}: belongs to another network (names or shapes differ)")
    return tensors


def _copies(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    copies = {}
    for name, tensor in tensors.items():
        copy = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
        copies[name] = copy.copy_(tensor.detach(), non_blocking=True)
    for device in {tensor.device for tensor in tensors.values() if tensor.is_cuda}:
        torch.cuda.synchronize(device)
    return copies


def _write(
    folder: str, name: str, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None
) -> None:
    save_file(tensors, os.path.join(folder, name), metadata)


def _damaged(path: str, reason: str) -> UserError:
    return UserError(f"{path}: the checkpoint can't be read ({reason})")
