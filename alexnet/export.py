"""A checkpoint as one column in one file, for use without this package.

    python -m alexnet.export CHECKPOINT OUTPUT.safetensors

The file holds the state dict of ``GroupedAlexNet``: a plain ``nn.Sequential`` whose layers have
the names ``conv1`` ... ``fc8``, with a group for each tower where the towers don't meet, and the
mean image as ``centre.mean``. Its header holds the recipe's numbers as JSON, under ``recipe``.
``alexnet/model/grouped.py`` imports nothing but torch, so its text can be copied elsewhere.

As a function the two are equal, in training and in testing. Dropout here is today's: zeros and a
scale in training, nothing in testing. So the weights that read dropped-out units, of fc7 and
fc8, are multiplied by the part that is kept; with .5, no digit is lost by that.
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from alexnet.errors import UserError, one_line
from alexnet.model.grouped import GroupedAlexNet
from alexnet.model.placement import to_single
from alexnet.training.checkpoint import read_recipe, read_tensors


def write(checkpoint: str, path: str) -> None:
    """Write a checkpoint's network, or the averaged one if the run kept one, as one file.

    Args:
        checkpoint: its folder (``checkpoints``).
        path: of the file, in an existing folder; a file that is there already is replaced.

    Raises:
        UserError: the checkpoint can't be read, or the file can't be written.
    """
    averaged = os.path.exists(os.path.join(checkpoint, "average.safetensors"))
    name = "average.safetensors" if averaged else "model.safetensors"
    recipe = read_recipe(checkpoint)
    state = to_single(read_tensors(checkpoint, name))
    for layer in ("fc7", "fc8"):
        state[f"{layer}.weight"] *= 1 - recipe["dropout"]
    state["centre.mean"] = read_tensors(checkpoint, "mean.safetensors")["mean"]
    try:
        save_file(state, f"{path}.part", {"recipe": json.dumps(recipe)})
        os.replace(f"{path}.part", path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: can't be written ({one_line(error)})") from error


def read(path: str) -> GroupedAlexNet:
    """The network of an exported file, in testing mode.

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
    """The command: exit status 0, or 2 with one line on what is wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m alexnet.export",
        description="Write a checkpoint as the state dict of a one-column network.",
    )
    parser.add_argument("checkpoint", help="folder of a checkpoint")
    parser.add_argument("output", metavar="OUTPUT.safetensors", help="file to write")
    given = parser.parse_args(arguments)
    try:
        write(given.checkpoint, given.output)
    except UserError as error:
        parser.exit(2, f"{parser.prog}: {error}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
