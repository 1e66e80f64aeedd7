"""The weights that a training begins with, if they are given: read by the driver, for all workers.

The driver writes them into the training's folder, so that a resumed training does not depend on the
file they came from, and workers on other nodes need not see it.
"""

import hashlib
from dataclasses import dataclass

import safetensors.torch
import torch
from torch import Tensor

from alexnet import storage
from alexnet.errors import UserError, one_line
from alexnet.model.towers import AlexNet
from alexnet.recipes import Recipe
from alexnet.weights.one_column import OneColumn
from alexnet.weights.read import Fitted, fit, read_checkpoint, read_file
from pipelines.console.log import stage_logger
from pipelines.training.checkpoint_folder import open_checkpoint

_FILE = "initial.safetensors"
_MEAN = "mean"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class InitialWeights:
    """Weights for some or all layers of a network."""

    content: bytes
    """Of a file in the format safetensors."""
    lines: tuple[str, ...] = ()
    """What they are, in words."""

    @property
    def digest(self) -> str:
        """16 hexadecimal digits of their sha256."""
        return hashlib.sha256(self.content).hexdigest()[:16]

    def write(self, folder: str) -> str:
        """Write them into a training's folder and say so, unless they are there.

        Returns:
            The file's path.
        """
        path = storage.join(folder, _FILE)
        if not storage.is_file(path):
            storage.write_bytes(path, self.content)
            for line in self.lines:
                stage_logger("train").info("%s", line)
        return path


def read_initial_weights(path: str, recipe: Recipe, classes: int) -> InitialWeights:
    """Read a checkpoint's folder or a file of another program.

    Raises:
        UserError: it is missing, damaged or of another network.
    """
    if storage.is_folder(path):
        with open_checkpoint(path).as_directory() as folder:
            weights = read_checkpoint(folder, recipe)
    else:
        try:
            content = storage.read_bytes(path)
        except OSError as error:
            raise UserError(f"--init-from {path}: can't be read ({one_line(error)})") from error
        weights = read_file(path, content)
    fitted = fit(path, weights, recipe, classes)
    tensors = dict(fitted.weights)
    if weights.mean is not None:
        tensors[_MEAN] = weights.mean.contiguous()
    lines = tuple(_in_words(path, weights, fitted, recipe))
    return InitialWeights(content=safetensors.torch.save(tensors), lines=lines)


def _in_words(path: str, weights: OneColumn, fitted: Fitted, recipe: Recipe) -> list[str]:
    drawn = f"; {', '.join(fitted.drawn)} are drawn" if fitted.drawn else ""
    mean = "the data set's mean image" if weights.mean is None else "the mean that belongs to them"
    lines = [
        f"beginning with weights of {weights.kind}, {path}: {', '.join(fitted.used)}{drawn}; crops "
        f"minus {mean}"
    ]
    differences = list(weights.differences)
    if weights.recipe and weights.recipe != recipe.name:
        differences.insert(0, f"another normalization, that of --recipe {weights.recipe}")
    if differences:
        lines.append(f"they were trained with {'; '.join(differences)}")
    return lines


@torch.no_grad()
def begin_with(network: AlexNet, path: str) -> Tensor | None:
    """Put weights that ``InitialWeights.write`` has written into a network on its devices.

    Returns:
        The mean, (3, 224, 224), that belongs to them; None for the data set's.
    """
    tensors = safetensors.torch.load(storage.read_bytes(path))
    mean = tensors.pop(_MEAN, None)
    parameters = dict(network.named_parameters())
    for name, tensor in tensors.items():
        parameters[name].copy_(tensor)
    return mean
