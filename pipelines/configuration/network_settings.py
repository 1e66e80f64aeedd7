"""The settings of ``train`` that choose the network and the weights that it begins with."""

from typing import Literal

from pydantic import BaseModel

from pipelines.configuration.setting_types import OneOrTwo, PathOrUri, Switch, option


class NetworkSettings(BaseModel):
    """A part of the settings of ``train``."""

    recipe: Literal["paper", "source145", "caffe", "torchvision"] = option(
        "source145",
        "numbers of the paper's text, or of the source that ran; or one of two later networks",
        result=True,
    )
    towers: OneOrTwo = option(
        2, "1: the paper's one-GPU network, of half the kernels in conv1 to conv4", result=True
    )
    normalization: Switch = option(True, "off: no response normalization", result=True)
    overlapping_pooling: Switch = option(
        True, "off: pools of 2x2 positions every 2 instead of 3x3", result=True
    )
    conv6: Switch = option(
        False,
        "on: a sixth convolution over the last pooling layer, the paper's 1 CNN*",
        result=True,
    )
    second_phase: Switch = option(
        False,
        "on: source145 continues as its log does, with the rate back at .001, to epoch 135",
        result=True,
    )
    init_from: PathOrUri | None = option(
        None,
        "weights to begin with: the folder of a checkpoint, or a file of torchvision's alexnet "
        "(.pth), Caffe (.caffemodel) or cuda-convnet",
        result=True,
    )
