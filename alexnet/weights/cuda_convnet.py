"""The authors' own checkpoints: pickles of cuda-convnet, read without executing anything.

Layers have the names of the published ``layers-*.cfg``: ``conv1a`` and ``conv1b`` of both towers,
``fc2048a`` (fc6), ``fc2048ba`` (fc7), ``fc1000`` (fc8). A layer has one matrix of weights for each
of its inputs: a row for each input channel and position, a column for each output. Crops are RGB
in the 0-255 range, minus a mean image, as here; it is no part of a checkpoint, so the data set's
own one is used. Dropout is the same.
"""

import pickle
import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from alexnet.errors import UserError, one_line
from alexnet.weights import safe_pickle
from alexnet.weights.one_column import OneColumn

_NAME = re.compile(r"(?:(conv[1-6])|(fc2048|fc4096)(b?))([ab])")
_OWN_FC8 = "fc1000"


def read_cuda_convnet(path: str, content: bytes) -> OneColumn:
    """Read a checkpoint, which is one file in a folder ``ConvNet__<date>``.

    Raises:
        UserError: it is damaged, holds other objects, or is of another network.
    """
    try:
        layers = _layers(safe_pickle.load(content))
        towers: dict[str, dict[str, tuple[NDArray[np.float32], NDArray[np.float32]]]] = {}
        for name, layer in layers.items():
            if our := _our_name(name):
                towers.setdefault(our[0], {})[our[1]] = _weights(our[0], layer)
    except pickle.UnpicklingError as error:
        raise UserError(f"{path}: {one_line(error)}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        reason = one_line(error)
        raise UserError(f"{path}: not a checkpoint of cuda-convnet ({reason})") from error
    if "conv1" not in towers:
        raise UserError(f"{path}: not a checkpoint of the authors' networks: no layer conv1a")
    tensors = {}
    for layer_name, by_tower in towers.items():
        for index, kind in enumerate(("weight", "bias")):
            parts = [by_tower[tower][index] for tower in sorted(by_tower)]
            tensors[f"{layer_name}.{kind}"] = torch.from_numpy(np.concatenate(parts))
    return OneColumn(kind="a checkpoint of cuda-convnet", tensors=tensors)


def _layers(checkpoint: Any) -> Mapping[str, Any]:
    """The layers by name, from the dict of 2012 or the list of the first version."""
    layers = checkpoint["model_state"]["layers"]
    if isinstance(layers, Mapping):
        return layers
    by_name: Iterable[tuple[str, Any]] = ((layer["name"], layer) for layer in layers)
    return dict(by_name)


def _our_name(name: str) -> tuple[str, str] | None:
    """Our name of a layer, and its tower; None if it has no weights that are used."""
    if name == _OWN_FC8:
        return "fc8", "a"
    match = _NAME.fullmatch(name)
    if match is None:
        return None
    conv, _, second, tower = match.groups()
    return conv or ("fc7" if second else "fc6"), tower


def _weights(name: str, layer: Any) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Weights as torch has them, with the first tower's inputs first, and biases."""
    matrices = [matrix.array() for matrix in layer["weights"]]
    order = sorted(range(len(matrices)), key=lambda index: str(layer["inputs"][index]))
    parts = []
    for index in order:
        matrix = matrices[index]
        if name.startswith("conv"):
            side = int(layer["filterSize"][index])
            matrix = matrix.reshape(-1, side, side, matrix.shape[1]).transpose(3, 0, 1, 2)
        else:
            matrix = matrix.T
        parts.append(matrix)
    return np.concatenate(parts, axis=1), layer["biases"].array().reshape(-1)
