"""The figures of evaluations contain the given values."""

import itertools
from pathlib import Path

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from alexnet.metrics import ConfusedPair, calibrate
from alexnet.plots import evaluation


def render(figure: Figure) -> None:
    canvas = FigureCanvasAgg(figure)
    canvas.draw()  # type: ignore[no-untyped-call]
    assert canvas.get_width_height()[0] == 900


def texts(figure: Figure) -> str:
    parts = [figure.get_suptitle(), figure.get_supxlabel()]
    for axes in figure.axes:
        parts += [axes.get_title(loc="left"), axes.get_xlabel(), axes.get_ylabel()]
        parts += [text.get_text() for text in axes.texts]
        parts += [label.get_text() for label in axes.get_yticklabels()]
    return "\n".join(parts)


def test_reliability() -> None:
    confidence = np.array([0.45, 0.45, 0.95, 0.95, 0.95, 0.95], np.float32)
    correct = np.array([True, False, True, True, True, False])
    figure = evaluation.reliability(calibrate(confidence, correct, bins=10))
    render(figure)
    above, below = figure.axes
    heights = [bar.get_height() for bar in above.patches]  # type: ignore[attr-defined]
    assert heights == [0, 0, 0, 0, 0.5, 0, 0, 0, 0, 0.75]
    assert [bar.get_height() for bar in below.patches] == [0, 0, 0, 0, 2, 0, 0, 0, 0, 4]  # type: ignore[attr-defined]
    assert "calibration error 15.0 percentage points" in texts(figure)


def test_confused_pairs_of_a_thousand_classes_have_names() -> None:
    names = [f"class {index}, synonym" for index in range(998)] + ["crane, bird", "crane, machine"]
    pairs = [ConfusedPair(998, 999, 30), ConfusedPair(5, 6, 20)] + [
        ConfusedPair(index, 0, 2) for index in range(10, 38)
    ]
    figure = evaluation.confused_pairs(pairs, np.full(1000, 50), names)
    render(figure)
    shown = texts(figure)
    assert "crane #998 → crane #999" in shown
    assert "class 5 → class 6" in shown
    assert "30 of 50" in shown
    (axes,) = figure.axes
    boxes = [label.get_window_extent() for label in axes.get_yticklabels()]
    assert all(low.y1 <= high.y0 for high, low in itertools.pairwise(boxes))
    assert all(box.x0 >= 0 for box in boxes)


def test_no_confusions() -> None:
    figure = evaluation.confused_pairs([], np.full(3, 2), ["a", "b", "c"])
    render(figure)
    assert "No image is classified wrongly." in texts(figure)


@pytest.mark.parametrize("count", [0, 1, 12])
def test_the_predictions_of_two_models_side_by_side(count: int, tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (count, 256, 256, 3), dtype=np.uint8)
    first = [[("tench", 0.7), ("goldfish", 0.2)]] * count
    second = [[("goldfish", 0.6), ("tench", 0.3)]] * count
    figure = evaluation.comparison_panel(
        images, ["tench"] * count, first, second, ("models:/a/1", "models:/a/2")
    )
    render(figure)
    shown = texts(figure)
    if not count:
        assert "No image is classified correctly by only one of them." in shown
        return
    assert "Left: models:/a/1. Right: models:/a/2." in shown
    assert len(figure.axes) == 3 * count
    pictures = figure.axes[::3]
    for axes, image in zip(pictures, images, strict=True):
        np.testing.assert_array_equal(axes.images[0].get_array(), image)
    left, right = figure.axes[1], figure.axes[2]
    assert left.get_position().x1 <= right.get_position().x0
    assert [text.get_text() for text in left.texts] == ["tench ✓", "70%", "goldfish", "20%"]
    assert [text.get_text() for text in right.texts] == ["goldfish", "60%", "tench ✓", "30%"]
