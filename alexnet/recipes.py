"""The hyperparameters of 2012 as two recipes: ``paper`` (the text), ``source145`` (the code).

``paper`` follows Krizhevsky, Sutskever and Hinton, "ImageNet Classification with Deep
Convolutional Neural Networks", NeurIPS 2012. ``source145`` is the network in the authors' published
source (Computer History Museum, ``layers/layers-145.cfg`` and ``layer-params-145.cfg``, cited here
as "145"). After the third drop of the rate its log shows the errors of the paper's row "1 CNN":
40.7 % top-1 and 18.2 % top-5 on the validation images of ILSVRC-2012 with ten views. Its centre
view was not logged. Related networks whose logs have both views were 1.8 to 2.2 (top-1) and 1.4 to
1.6 (top-5) percentage points worse with the centre view, so about 42.6 % and 19.7 % are to be
expected. The values that both recipes share are the defaults below.
"""

from dataclasses import dataclass, replace
from typing import Literal

from alexnet.schedules import NEVER, LayerRate, PlateauSchedule, StepSchedule

IMAGE_SIZE = 256
"""Width and height of the stored images, in pixels."""

CROP_SIZE = 224
"""Width and height of the network's input, a crop of a stored image, in pixels."""

ColourNoise = Literal["eigenvalue", "deviation"]
Shuffle = Literal["once", "every-epoch"]

LAYERS = ("conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7", "fc8")


@dataclass(frozen=True, slots=True, kw_only=True)
class Normalization:
    """x / (bias + alpha · Σ x²) ^ .75, with the sum over a window of ``size`` maps or positions."""

    size: int
    """Width of the window: in maps for the cross-map kind, in rows and columns within a map."""
    alpha: float
    """Weight of each square. A division by the window size is already included."""
    bias: float
    """The constant in the denominator."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """The hyperparameters of the network and of its training."""

    name: str
    cross_map: Normalization | None
    """After conv1 and conv2, over neighbouring maps of one tower (paper, section 3.3), or None."""
    within_map: Normalization | None
    """A second normalization over 5x5 positions, between norm 2 and pool 2, or None."""
    norm1_before_relu: bool
    """Whether norm 1 takes conv1's linear output, and ReLU comes after pool 1 (145)."""
    pool_size: int = 3
    """Width of the pooling windows. Their stride is 2, so with 3 they overlap (paper, section
    3.4)."""
    pool_ceil: bool = False
    """Whether a window that extends over the right or lower border has an output, too."""
    conv1_padding: tuple[int, int] = (0, 3)
    """Rows and columns of zeros above and on the left of conv1's input, and below and on the right.
    cuda-convnet rounds the number of positions up to 55, which needs three more at the end."""
    conv2_padding: int = 2
    """Rows and columns of zeros on each side of conv2's input."""
    conv5_padding: int = 1
    """The same for conv5."""
    conv6: bool = False
    """Whether there is a sixth convolutional layer over pool 5 (paper, section 6: "1 CNN*")."""
    kernels: tuple[int, int, int, int] = (48, 128, 192, 192)
    """Of each tower in conv1 to conv4."""
    towers: int = 2
    """Number of towers. The 256 kernels of conv5, and of conv6, and the units of fc6 and fc7 are
    divided among them."""
    hidden: int = 4096
    """Units in fc6, and in fc7, of all towers together."""
    weight_std: dict[str, float]
    """Standard deviation of each layer's initial weights. Their mean is 0."""
    ones: tuple[str, ...] = ("conv2", "conv4", "conv5", "fc6", "fc7")
    """Layers whose biases start at 1. Those of the others start at 0 (paper, section 5)."""
    bias_start: float = 1.0
    """What the biases of ``ones`` start at instead, in networks of others."""
    bias_rate: float
    """The biases' first learning rate as a multiple of the weights' (145: ``epsB=0.02`` and
    ``epsW=0.01``)."""
    colour_noise: ColourNoise
    """Multiply the principal components by the eigenvalue (paper) or its square root (145)."""
    colour_noise_std: float = 0.1
    """Standard deviation of the colour noise's random factors (paper, section 4.1)."""
    training_scale: float
    """Factor of training crops after the noise (145: 1 / 1.1). It is applied only in epochs with
    noise, as in the 2012 source."""
    crop_positions: int
    """Crop offsets per axis: 32 (the paper's 2048 crops with flips) or all 33 (145)."""
    crop_chunk: int
    """This many consecutive images have the same crop position and flip (145: 32)."""
    shuffle: Shuffle = "every-epoch"
    """When the order of the training images is drawn. The paper does not say. In the 2012 source
    (``convdata_jpeg.py``) every epoch reads the same batches in the same order, so the images of an
    update, and those with the same crop, are the same in every epoch."""
    schedule: PlateauSchedule | StepSchedule
    epochs: int
    """When to stop. 145 was "killed" in epoch 91, so it had 90 to 91 whole epochs. We train 91, as
    an epoch in which the rate was lowered has the lower rate from its beginning."""
    learning_rate: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 0.0005
    batch_size: int = 128
    dropout: float = 0.5
    """Probability of setting a unit of fc6 and fc7 to zero (paper, section 4.2)."""


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
    shuffle="once",
    schedule=StepSchedule(),
    epochs=91,
)


ABLATIONS_OF_145 = {
    (True, False, 2): (
        StepSchedule(
            drops=(23, 51, 79),
            bias_drops=(79,),
            layer_rates=(LayerRate(layer="conv1", first_epoch=79, factor=0.0),),
            colour_noise_until=NEVER,
        ),
        90,
    ),
    (False, True, 2): (
        StepSchedule(
            drops=(22, 44, 86),
            layer_rates=(
                LayerRate(layer="conv1", first_epoch=69, factor=0.1),
                LayerRate(layer="conv1", first_epoch=73, factor=0.0),
            ),
            colour_noise_until=69,
        ),
        97,
    ),
    (True, True, 1): (
        StepSchedule(
            drops=(20, 48),
            layer_rates=(
                LayerRate(layer="conv1", first_epoch=66, factor=0.1),
                LayerRate(layer="conv1", first_epoch=72, factor=0.0),
            ),
            colour_noise_until=66,
        ),
        96,
    ),
}
"""Schedule and epochs of the authors' own ablations, by normalization, overlapping pooling, towers.

From the logs at the end of ``layer-params-147.cfg``, ``-148.cfg`` and ``-145-half.cfg``. Of 147 no
slow phase of conv1 and no end of the colour noise are logged. Its biases ended at 0.002, and still
had 0.02 after the first drop (``layer-params-147.cfg.save``); that theirs was at the last one is
our assumption. 145-half ended with 0.00001 in all layers, but no third drop is logged: it has none
here.
"""


def ablate(
    recipe: Recipe,
    *,
    normalization: bool = True,
    overlapping_pooling: bool = True,
    towers: int = 2,
) -> Recipe:
    """A recipe without one or more of the components for which the paper has an ablation.

    The paper's effect of each, in percentage points of top-1 and top-5 error. The logs of the
    source give the data: for the first two the validation images of ILSVRC-2012, for the third
    ILSVRC-2010; all with ten views.

    ``normalization``: 1.4 and 1.2 (section 3.3). Without it, both kinds are removed.
    ``overlapping_pooling``: 0.4 and 0.3 (section 3.4). Without it, pooling windows are 2x2 with
    stride 2. In ``paper`` their outputs have the same sizes, 27, 13 and 6: the text says
    "equivalent dimensions". ``source145`` becomes the network that the authors trained
    (``layers-147.cfg``), with other paddings and sizes rounded up: 28, 13 and 6.
    ``towers``: 1.7 and 1.2 for two instead of one (section 3.2). A single tower has half of the
    kernels in conv1 to conv4, but all 256 kernels of conv5 and all units of fc6 and fc7. So both
    networks have a similar number of parameters: 59,798,312 for the single tower at 1000 classes.
    See the paper's footnote on the one-GPU net, and ``layers-145-half.cfg`` of the source.

    ``source145`` without one component has the schedule with which the authors trained that network
    (``ABLATIONS_OF_145``). They published none without two, so these keep 145's.
    """
    if recipe.name == SOURCE145.name:
        ablation = (normalization, overlapping_pooling, towers)
        own = ABLATIONS_OF_145.get(ablation, (recipe.schedule, recipe.epochs))
        recipe = replace(recipe, schedule=own[0], epochs=own[1])
        if not overlapping_pooling:
            recipe = replace(recipe, pool_ceil=True, conv2_padding=1, conv5_padding=0)
    if not overlapping_pooling:
        recipe = replace(recipe, pool_size=2)
    return replace(
        recipe,
        cross_map=recipe.cross_map if normalization else None,
        within_map=recipe.within_map if normalization else None,
        towers=towers,
    )


RECIPES = {recipe.name: recipe for recipe in (PAPER, SOURCE145)}
