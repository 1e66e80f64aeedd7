"""A checkpoint as one column in one file, for use without this package.

    python -m alexnet.export CHECKPOINT OUTPUT.safetensors

The file contains the state dict of ``GroupedAlexNet``: a plain ``nn.Sequential`` with the layers
``conv1`` ... ``fc8``. Convolutions in which the towers exchange no activations have one group for
each tower. The mean image is ``centre.mean``. The header contains the recipe as JSON, under
``recipe``. ``alexnet/model/grouped.py`` imports only torch, so it can be copied to another project.

As functions both networks are equal, in training and in evaluation. ``GroupedAlexNet`` uses torch's
dropout, which scales the kept units in training and does nothing in evaluation. So the weights
after dropout, those of fc7 and fc8, are multiplied by the fraction of kept units. With .5 this is
exact in floating point.
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
from alexnet.model.placement import to_grouped
from alexnet.training.checkpoint import read_mean, read_network, read_recipe


def write(checkpoint: str, path: str) -> None:
    """Write a checkpoint's network as one file, with the averaged weights if there are any.

    Args:
        checkpoint: its folder (``alexnet.training.checkpoint``).
        path: of the file, in an existing folder. An existing file is replaced.

    Raises:
        UserError: the checkpoint can't be read, or the file can't be written.
    """
    recipe = read_recipe(checkpoint)
    state = to_grouped(read_network(checkpoint))
    for layer in ("fc7", "fc8"):
        state[f"{layer}.weight"] *= 1 - recipe["dropout"]
    state["centre.mean"] = read_mean(checkpoint)
    try:
        save_file(state, f"{path}.part", {"recipe": json.dumps(recipe)})
        os.replace(f"{path}.part", path)
    except (OSError, SafetensorError) as error:
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
        description="Write a checkpoint as the state dict of a one-column network.",
    )
    parser.add_argument("checkpoint", help="folder of a checkpoint")
    parser.add_argument("output", metavar="OUTPUT.safetensors", help="file to write")
    options = parser.parse_args(arguments)
    try:
        write(options.checkpoint, options.output)
    except UserError as error:
        parser.exit(2, f"{parser.prog}: {error}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
