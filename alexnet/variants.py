"""Networks that the authors derived from net 145: trained for longer, and with a sixth convolution.

Ablations of the paper's components are in ``recipes.ablate``.
"""

from dataclasses import replace

from alexnet.recipes import SOURCE145, Recipe
from alexnet.schedules import LayerRate, SecondPhase, StepSchedule

SCHEDULE_146 = StepSchedule(
    drops=(22, 42),
    layer_rates=(
        LayerRate(layer="conv1", first_epoch=1, factor=0.1),
        LayerRate(layer="conv1", first_epoch=5, factor=0.01),
        LayerRate(layer="conv1", first_epoch=7, factor=0.0),
        LayerRate(layer="fc8", first_epoch=1, factor=10.0),
        LayerRate(layer="fc8", first_epoch=9, factor=1.0),
    ),
    colour_noise_until=38,
)
"""From the log at the end of ``layer-params-146-2012-2011.cfg``, whose net had been trained on more
images before. Its first rate is 0.001. fc8, which was new, got its higher rate after 300 batches
there, and has it from the beginning here; the log names the weights only, here it is for the biases
too."""

BIAS_RATE_146 = 20.0
"""The biases' rate in 146 was 0.02 in most layers, as in 145; the weights' one began at 0.001."""


def with_second_phase(recipe: Recipe) -> Recipe:
    """145 with the second phase of its log, which ended in epoch 135."""
    assert isinstance(recipe.schedule, StepSchedule)
    schedule = replace(recipe.schedule, second_phase=SecondPhase())
    return replace(recipe, schedule=schedule, epochs=135)


def with_conv6(recipe: Recipe, *, pretrained: bool) -> Recipe:
    """A recipe with a sixth convolution over pool 5, the paper's "1 CNN*" (section 6).

    The layer has 3x3 kernels with padding 1, 128 in each tower, which see the maps of both towers
    (``layers-146-2012-2011.cfg``); the paper gives no numbers. The authors trained it on images of
    22,000 classes, with conv1 to conv5 from 145, and then on ILSVRC-2012: 39.0 % and 16.6 % with
    ten views.

    Args:
        recipe: without it.
        pretrained: whether the training begins with weights of a network. Then ``source145`` has
            the schedule with which the authors trained 146 on ILSVRC-2012; else its own one.
    """
    weight_std = recipe.weight_std | {"conv6": recipe.weight_std["conv5"]}
    recipe = replace(recipe, conv6=True, weight_std=weight_std, ones=(*recipe.ones, "conv6"))
    if not pretrained or recipe.name != SOURCE145.name:
        return recipe
    return replace(
        recipe,
        schedule=SCHEDULE_146,
        epochs=54,
        learning_rate=0.001,
        bias_rate=BIAS_RATE_146,
    )
