"""Weights as those of the network of one column, in which all readers give them."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class OneColumn:
    """The weights of a network, as of ``GroupedAlexNet``.

    They are those of this project's dropout, which does not scale units in training, and halves
    those of fc6 and fc7 in evaluation. They take RGB crops in the 0-255 range, minus the mean.
    """

    kind: str
    """What they were read from, for messages."""
    tensors: Mapping[str, Tensor]
    """float32 by name: ``conv1.weight`` (96, 3, 11, 11) etc."""
    mean: Tensor | None = None
    """(3, 224, 224) float32, subtracted from every crop; None for the mean image of the data set
    that they are used with."""
    recipe: str | None = None
    """Name of the recipe whose network they belong to, if there is only one."""
    differences: tuple[str, ...] = ()
    """How the network that they were trained in differs from that of the recipe."""
