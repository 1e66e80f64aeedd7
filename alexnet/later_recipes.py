"""Two later networks that are called AlexNet, so that their published weights can be used.

``caffe``: ``bvlc_alexnet`` (github.com/BVLC/caffe, ``models/bvlc_alexnet``), the paper's network
with another normalization. ``torchvision``: ``torchvision.models.alexnet``, the network of one
column of Krizhevsky, "One weird trick for parallelizing convolutional neural networks", 2014. It
has other numbers of kernels, and no normalization. Neither is a reproduction of 2012.

The numbers are those of their published trainings. Images are always treated as in this project:
crops of 224 at 33x33 positions, no change of scale, no colour noise.
"""

from math import sqrt

from alexnet.recipes import LAYERS, Normalization, Recipe
from alexnet.schedules import StepSchedule


def _steps(*drops: int) -> StepSchedule:
    """Drops of all rates, and nothing else."""
    return StepSchedule(
        drops=drops,
        bias_drops=drops,
        layer_rates=(),
        colour_noise_until=1,
    )


CAFFE = Recipe(
    name="caffe",
    # Caffe divides alpha by the size, and its constant is 1. Its sums extend over the border
    # between the two groups of maps, ours do not.
    cross_map=Normalization(size=5, alpha=1e-4 / 5, bias=1.0),
    within_map=None,
    norm1_before_relu=False,
    weight_std=dict.fromkeys(LAYERS, 0.01) | {"fc6": 0.005, "fc7": 0.005},
    bias_start=0.1,
    bias_rate=2.0,
    colour_noise="deviation",
    training_scale=1.0,
    crop_positions=33,
    crop_chunk=1,
    # Every 100,000 of 450,000 iterations with 256 images: about 20 epochs.
    schedule=_steps(21, 41, 61, 81),
    epochs=90,
    batch_size=256,
)

_FAN_IN = {
    "conv1": 3 * 11 * 11,
    "conv2": 64 * 5 * 5,
    "conv3": 192 * 3 * 3,
    "conv4": 384 * 3 * 3,
    "conv5": 256 * 3 * 3,
    "fc6": 256 * 6 * 6,
    "fc7": 4096,
    "fc8": 4096,
}
_PIXEL_STD = 57.4
"""Mean of the deviations by which torchvision divides pixels; here they are not divided."""

TORCHVISION = Recipe(
    name="torchvision",
    cross_map=None,
    within_map=None,
    norm1_before_relu=False,
    conv1_padding=(2, 2),
    kernels=(64, 192, 384, 256),
    towers=1,
    # Torch's default has a uniform distribution of this deviation.
    weight_std={
        layer: 1 / sqrt(3 * fan_in) / (_PIXEL_STD if layer == "conv1" else 1)
        for layer, fan_in in _FAN_IN.items()
    },
    ones=(),
    bias_rate=1.0,
    colour_noise="deviation",
    training_scale=1.0,
    crop_positions=33,
    crop_chunk=1,
    schedule=_steps(31, 61),
    epochs=90,
    weight_decay=0.0001,
    batch_size=256,
)

LATER_RECIPES = {recipe.name: recipe for recipe in (CAFFE, TORCHVISION)}
