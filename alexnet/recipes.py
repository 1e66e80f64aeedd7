"""The numbers of 2012, in two recipes: ``paper`` (the text) and ``source145`` (what ran).

``source145`` is the published network of the authors' own source (Computer History Museum,
``layers/layers-145.cfg`` and ``layer-params-145.cfg``, cited here as "145"), whose log ends at
the paper's "1 CNN" row, 40.7 % top-1 and 18.2 % top-5 error on ILSVRC-2012's validation images.
``paper`` follows Krizhevsky, Sutskever and Hinton, "ImageNet Classification with Deep
Convolutional Neural Networks", NeurIPS 2012. Where they disagree, the recipes differ; what they
share is a default below.
"""

from dataclasses import dataclass, replace
from typing import Literal

IMAGE_SIZE = 256
"""Width and height of the images that are stored, in pixels."""

CROP_SIZE = 224
"""Width and height of what the network is shown of them, in pixels."""

ColourNoise = Literal["eigenvalue", "deviation"]

LAYERS = ("conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7", "fc8")


@dataclass(frozen=True, slots=True, kw_only=True)
class Normalization:
    """x / (bias + alpha · Σ x²) ^ .75, the sum over a window of ``size`` maps or positions."""

    size: int
    """Width of the window: channels for the cross-map form, rows and columns within a map."""
    alpha: float
    """Weight of each squared term, any division by the window's size already done."""
    bias: float
    """The constant in the denominator."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlateauSchedule:
    """Divide the learning rate when the validation error stalls (paper, section 5)."""

    factor: float = 0.1
    drops: int = 3
    patience: int = 5
    """Epochs without a better validation error before a drop. The paper gives no number: its
    rate was lowered by hand; five epochs out of ninety is our reading of "stopped improving"."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepSchedule:
    """Divide the learning rate at fixed epochs (145)."""

    factor: float = 0.1
    drops: tuple[int, ...] = (25, 51, 79)
    """Whole epochs trained before each drop."""
    biases_drop: bool = False
    """Whether the biases' rate falls with the weights'. The log at the foot of
    ``layer-params-145.cfg`` lowers ``epsW`` alone, and the file ends with ``epsW=0.00001`` beside
    ``epsB=0.02``, the first bias rate, in every layer but the frozen conv1 (``epsB=0.0``)."""
    conv1_slow_from: int = 67
    """From this epoch on, conv1's weights learn at a tenth of the rate."""
    conv1_frozen_from: int = 72
    """From this epoch on, conv1 does not learn. When its ``epsB`` became 0 is not in the log; we
    take it to be now, with its ``epsW``."""
    colour_noise_until: int = 67
    """From this epoch on, the colours are left alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Everything that distinguishes one training of the network from another."""

    name: str
    cross_map: Normalization | None
    """After conv1 and conv2, over neighbouring maps of one tower (paper, section 3.3), or none."""
    within_map: Normalization | None
    """A further normalization over 5x5 positions between norm 2 and pool 2, or none."""
    norm1_before_relu: bool
    """145 normalizes conv1's linear output and rectifies after pool 1."""
    pool_size: int = 3
    """Side of the pools, which stand 2 apart: 3 makes them overlap (paper, section 3.4)."""
    towers: int = 2
    """Towers of 48, 128, 192 and 192 kernels in conv1 to conv4; they share the 256 of conv5 and the
    units of fc6 and fc7, all of which a single tower has to itself."""
    hidden: int = 4096
    """Units in fc6, and in fc7, of all towers together."""
    weight_std: dict[str, float]
    """Standard deviation of each layer's initial weights; their mean is 0."""
    ones: tuple[str, ...] = ("conv2", "conv4", "conv5", "fc6", "fc7")
    """Layers whose biases start at 1, the others' at 0 (paper, section 5)."""
    bias_rate: float
    """The biases' first learning rate as a multiple of the weights' (145: ``epsB=0.02`` beside
    ``epsW=0.01``)."""
    colour_noise: ColourNoise
    """Multiply the principal components by the eigenvalue (paper) or its root (145)."""
    colour_noise_std: float = 0.1
    """Standard deviation of the colour noise's random factors (paper, section 4.1)."""
    training_scale: float
    """Training patches are multiplied by this after the noise (145: 1 / 1.1), while there is noise:
    the 2012 source divides only where it has added some."""
    crop_positions: int
    """Crop offsets per axis: 32 (the paper's 2048 patches with flips) or all 33 (145)."""
    crop_chunk: int
    """This many consecutive images share a crop and a flip (145: 32)."""
    schedule: PlateauSchedule | StepSchedule
    epochs: int
    learning_rate: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 0.0005
    batch_size: int = 128
    dropout: float = 0.5
    """Probability of a zero in fc6 and fc7 (paper, section 4.2)."""


PAPER = Recipe(
    name="paper",
    cross_map=Normalization(size=5, alpha=1e-4, bias=2.0),
    within_map=None,
    norm1_before_relu=False,
    weight_std=dict.fromkeys(LAYERS, 0.01),
    bias_rate=1.0,
    colour_noise="eigenvalue",
    training_scale=1.0,
    crop_positions=32,
    crop_chunk=1,
    schedule=PlateauSchedule(),
    epochs=90,
)

SOURCE145 = Recipe(
    name="source145",
    cross_map=Normalization(size=5, alpha=1e-4 / 5, bias=2.0),
    within_map=Normalization(size=5, alpha=0.001 / 25, bias=1.0),
    norm1_before_relu=True,
    weight_std=dict.fromkeys(LAYERS, 0.01) | dict.fromkeys(("conv3", "conv4", "conv5"), 0.03),
    bias_rate=2.0,
    colour_noise="deviation",
    training_scale=1 / 1.1,
    crop_positions=33,
    crop_chunk=32,
    schedule=StepSchedule(),
    epochs=91,
)


def ablate(
    recipe: Recipe,
    *,
    normalization: bool = True,
    overlapping_pooling: bool = True,
    towers: int = 2,
) -> Recipe:
    """A recipe without one or more of the ideas whose worth the paper measures.

    What each of them is worth on ILSVRC-2010, in points of top-1 and top-5 error, by the paper:

    ``normalization``: 1.4 and 1.2 (section 3.3). Without it, both kinds are left out.
    ``overlapping_pooling``: 0.4 and 0.3 (section 3.4). Without it, pools are 2x2 every 2; their
    outputs have the same sizes, 27, 13 and 6.
    ``towers``: 1.7 and 1.2 for two against one (section 3.2). The single tower has half of the
    kernels in conv1 to conv4, but all 256 in conv5 and all of fc6 and fc7, so that both networks
    have about as many parameters: the paper's footnote on the one-GPU net, and the source's
    ``layers-145-half.cfg``. 59,798,312 parameters at 1000 classes.
    """
    return replace(
        recipe,
        cross_map=recipe.cross_map if normalization else None,
        within_map=recipe.within_map if normalization else None,
        pool_size=3 if overlapping_pooling else 2,
        towers=towers,
    )


RECIPES = {recipe.name: recipe for recipe in (PAPER, SOURCE145)}
