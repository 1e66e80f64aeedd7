"""A checkpoint as one column in one file, for use without this package.

    python -m alexnet.export CHECKPOINT OUTPUT.safetensors
    python -m alexnet.export CHECKPOINT OUTPUT.onnx
    python -m alexnet.export CHECKPOINT OUTPUT.pth

The first contains the state dict of ``GroupedAlexNet``: a plain ``nn.Sequential`` with the layers
``conv1`` ... ``fc8``. Convolutions in which the towers exchange no activations have one group for
each tower. The mean image is ``centre.mean``. The header contains the recipe as JSON, under
``recipe``. ``alexnet/model/grouped.py`` imports only torch, so it can be copied to another project.
The second is described in ``onnx_export``. The third is a state dict of
``torchvision.models.alexnet``, for networks of the recipe ``torchvision``.

As functions both networks are equal, in training and in evaluation. ``GroupedAlexNet`` uses torch's
dropout, which scales the kept units in training and does nothing in evaluation. So the weights
after dropout, those of fc7 and fc8, are multiplied by the fraction of kept units. With .5 this is
exact in floating point.
"""

import argparse
import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from alexnet.errors import UserError, one_line
from alexnet.later_recipes import TORCHVISION
from alexnet.model.grouped import GroupedAlexNet
from alexnet.model.placement import to_grouped
from alexnet.onnx_export import to_onnx
from alexnet.training.checkpoint import read_mean, read_network, read_recipe
from alexnet.weights.torchvision import to_torchvision


def write(checkpoint: str, path: str) -> None:
    """Write a checkpoint's network as one file, with the averaged weights if there are any.

    Args:
        checkpoint: its folder (``alexnet.training.checkpoint``).
        path: of the file, in an existing folder. An existing file is replaced. It ends with
            ``.safetensors``, ``.onnx`` or ``.pth``.

    Raises:
        UserError: the checkpoint can't be read, the file can't be written, or it can't have this
            network.
    """
    recipe = read_recipe(checkpoint)
    state = to_grouped(read_network(checkpoint))
    ending = os.path.splitext(path)[1]
    if ending == ".pth":
        _write_torchvision(state, read_mean(checkpoint), recipe["name"], path)
        return
    for layer in ("fc7", "fc8"):
        state[f"{layer}.weight"] *= 1 - recipe["dropout"]
    state["centre.mean"] = read_mean(checkpoint)
    if ending == ".onnx":
        column = GroupedAlexNet(recipe, len(state["fc8.weight"]))
        column.load_state_dict(state)
        program = to_onnx(column, path)
        with _replaced(path) as part:
            program.save(part)
        return
    if ending != ".safetensors":
        raise UserError(f"{path}: give a name that ends with .safetensors, .onnx or .pth")
    with _replaced(path, SafetensorError) as part:
        save_file(state, part, {"recipe": json.dumps(recipe)})


def _write_torchvision(state: dict[str, Tensor], mean: Tensor, recipe: str, path: str) -> None:
    if recipe != TORCHVISION.name:
        raise UserError(
            f"{path}: torchvision's alexnet has other layers than the recipe {recipe}; give a name "
            "that ends with .safetensors or .onnx"
        )
    with _replaced(path, RuntimeError) as part:
        torch.save(to_torchvision(state, mean), part)


@contextmanager
def _replaced(path: str, *errors: type[Exception]) -> Iterator[str]:
    """The path of a file to write, which is moved to ``path`` at the end of the block.

    Raises:
        UserError: for an OSError, or one of the other errors with which the writer reports that the
            file can't be written.
    """
    part = f"{path}.part"
    failures: tuple[type[Exception], ...] = (OSError, *errors)
    try:
        yield part
        os.replace(part, path)
    except failures as error:
        raise UserError(f"{path}: can't be written ({one_line(error)})") from error


def read(path: str) -> GroupedAlexNet:
    """The network of an exported file, in evaluation mode.

    Raises:
        UserError: the file is missing, damaged or not an export.
    """
    try:
        with safe_open(path, "pt") as file:
            recipe = json.loads(file.metadata()["recipe"])
        state = load_file(path)
        network = GroupedAlexNet(recipe, len(state["fc8.weight"]))
        network.load_state_dict(state)
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise UserError(f"{path}: not a file of alexnet.export ({one_line(error)})") from error
    return network.eval()


def main(arguments: Sequence[str]) -> None:
    """The command: exit status 0, or 2 with one line that explains the error."""
    parser = argparse.ArgumentParser(
        prog="python -m alexnet.export",
        description="Write a checkpoint as a one-column network, for use without this package.",
    )
    parser.add_argument("checkpoint", help="folder of a checkpoint")
    parser.add_argument("output", metavar="OUTPUT.safetensors|.onnx|.pth", help="file to write")
    options = parser.parse_args(arguments)
    try:
        write(options.checkpoint, options.output)
    except UserError as error:
        parser.exit(2, f"{parser.prog}: {error}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
