"""The figures of a training contain the given values."""

from io import BytesIO

import numpy as np
import pytest
from matplotlib.figure import Figure

from alexnet.plots import training


def render(figure: Figure) -> None:
    figure.savefig(BytesIO(), format="png")
    assert figure.get_size_inches()[0] == 9


def test_activation_maps_show_each_layer_of_each_tower() -> None:
    random = np.random.default_rng(0)
    maps = {"conv1": [random.random((48, 55, 55))] * 2, "conv2": [random.random((8, 27, 27))] * 2}
    figure = training.activation_maps(np.zeros((224, 224, 3), np.uint8), maps)
    render(figure)
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert titles == ["input", "conv1, 55×55", "", "conv2, 27×27", ""]
    mosaic = figure.axes[1].images[0].get_array()
    assert mosaic is not None
    assert mosaic.shape == (4 * 56 - 1, 4 * 56 - 1)
    assert mosaic.max() == 1


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_values_that_are_no_numbers_are_drawn_as_far_as_possible(bad: float) -> None:
    maps = {"conv1": [np.full((3, 5, 5), bad)]}
    render(training.activation_maps(np.zeros((224, 224, 3), np.uint8), maps))
    render(training.layer_statistics({"conv1": [bad, 1.0]}, {"conv1": [0.0, 1.0]}, 64))
    render(training.layer_statistics({}, {}, 64))
    render(training.activation_maps(np.zeros((224, 224, 3), np.uint8), {}))


def test_layer_statistics_have_a_point_for_each_tower() -> None:
    gradients = {"conv1": [1.0, 2.0], "fc8": [3.0]}
    figure = training.layer_statistics(gradients, {"conv1": [50.0, 0.0]}, 64)
    render(figure)
    left, right = figure.axes
    assert [np.asarray(line.get_ydata()).tolist() for line in left.lines] == [[1.0, 3.0], [2.0]]
    assert [np.asarray(line.get_ydata()).tolist() for line in right.lines] == [[50.0], [0.0]]
    assert "64 validation images" in right.get_title(loc="left")
