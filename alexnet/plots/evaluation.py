"""The figures of evaluations and of their comparison, in the style of ``alexnet.plots.figures``."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from alexnet.metrics import Calibration, ConfusedPair
from alexnet.plots import style
from alexnet.plots.style import Array

Ranking = Sequence[tuple[str, float]]
"""Class names and probabilities (0 to 1), best first."""


def reliability(calibration: Calibration) -> Figure:
    """How often predictions are right, over their probability, and how many there are."""
    figure = style.new_figure(4.6, "Reliability")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    width = 1 / len(calibration.images)
    left = np.arange(len(calibration.images)) * width
    style.graph_axes(above, "", "images classified correctly (fraction)")
    above.bar(
        left, np.nan_to_num(calibration.accuracy), width * 0.94, 0, align="edge", color="#8cc2e6"
    )
    above.plot([0, 1], [0, 1], color=style.SECONDARY_COLOUR, linewidth=1, linestyle=(0, (4, 3)))
    above.plot(calibration.confidence, calibration.accuracy, "o", color=style.BLUE, markersize=4)
    above.set(xlim=(0, 1), ylim=(0, 1))
    style.panel_title(
        above,
        f"Expected calibration error {100 * calibration.error:.1f} percentage points; "
        "on the dashed line probability and accuracy agree",
    )
    style.graph_axes(below, "probability of the best class", "images")
    below.bar(left, calibration.images, width * 0.94, align="edge", color="#dcdcdc")
    return figure


def confused_pairs(pairs: Sequence[ConfusedPair], totals: Array, names: Sequence[str]) -> Figure:
    """The most frequent confusions as bars with both classes' names, for any number of classes.

    Args:
        pairs: most frequent first.
        totals: (classes,) images of each true class.
        names: a name per class.
    """
    figure = style.new_figure(max(1.5, 0.9 + 0.28 * len(pairs)), "Most frequent confusions")
    if not pairs:
        return style.text_figure(figure, "No image is classified wrongly.")
    axes = style.graph_axes(figure.add_subplot(), "images of the class (%)", "")
    shorts = style.distinct_names(names, 34)
    shares = [100 * pair.images / totals[pair.true] for pair in pairs]
    axes.barh(range(len(pairs)), shares, 0.7, color="#8cc2e6")
    labels = [f"{shorts[pair.true]} → {shorts[pair.predicted]}" for pair in pairs]
    axes.set_yticks(range(len(pairs)), labels)
    axes.invert_yaxis()
    axes.set_xlim(0, max(shares) * 1.12)
    axes.grid(visible=False, axis="y")
    for row, (pair, share) in enumerate(zip(pairs, shares, strict=True)):
        text = f" {pair.images:,} of {totals[pair.true]:,}"
        axes.text(share, row, text, va="center", fontsize=7.5, color=style.TEXT_COLOUR)
    style.panel_title(axes, "true class → predicted class")
    return figure


def comparison_panel(
    images: Array,
    truths: Sequence[str],
    first: Sequence[Ranking],
    second: Sequence[Ranking],
    names: tuple[str, str],
) -> Figure:
    """Images with the best predictions of two models, side by side.

    Args:
        images: (images, height, width, 3) uint8.
        truths: the true class of each image.
        first: the first model's predictions for each image.
        second: the second model's.
        names: of the two models.
    """
    columns = 2
    rows = -(-len(images) // columns)
    figure = style.new_figure(max(1.5, 0.9 + 1.55 * rows), "Images on which the models differ")
    if not len(images):
        return style.text_figure(figure, "No image is classified correctly by only one of them.")
    style.footnote(
        figure, f"Left: {names[0]}. Right: {names[1]}. The true class is blue and has a tick."
    )
    grid = figure.add_gridspec(rows, 3 * columns, width_ratios=[1, 1.15, 1.15] * columns)
    for index, (image, truth) in enumerate(zip(images, truths, strict=True)):
        row, column = divmod(index, columns)
        picture = style.picture_axes(figure.add_subplot(grid[row, 3 * column]))
        picture.imshow(image)
        picture.set_xlabel(
            style.short_name(truth, 18), fontsize=style.SMALL_FONT, color=style.TEXT_COLOUR
        )
        for offset, rankings in enumerate((first, second), start=1):
            bars = figure.add_subplot(grid[row, 3 * column + offset])
            style.prediction_bars(bars, truth, rankings[index])
    return figure


def nearest_images(
    queries: Array,
    truths: Sequence[str],
    nearest: Sequence[Array],
    classes: Sequence[Sequence[str]],
    candidates: int,
) -> Figure:
    """Validation images, each in a row with the training images whose features are nearest.

    Args:
        queries: (images, height, width, 3) uint8.
        truths: the true class of each.
        nearest: of each, (neighbours, height, width, 3) uint8, the nearest first.
        classes: of each, the true classes of its neighbours.
        candidates: training images among which they were looked for.
    """
    columns = 1 + max((len(images) for images in nearest), default=0)
    height = max(1.5, 0.9 + 1.5 * len(queries))
    figure = style.new_figure(height, "Nearest training images")
    if not len(queries):
        return style.text_figure(figure, "No images.")
    grid = figure.add_gridspec(len(queries), columns)
    rows = zip(queries, truths, nearest, classes, strict=True)
    for row, (query, truth, images, names) in enumerate(rows):
        pairs = zip([query, *images], [truth, *names], strict=True)
        for column, (image, name) in enumerate(pairs):
            picture = style.picture_axes(figure.add_subplot(grid[row, column]))
            picture.imshow(image)
            picture.set_xlabel(
                style.short_name(name, 16),
                fontsize=style.SMALL_FONT,
                fontweight="bold" if column == 0 or name == truth else "normal",
                color=style.BLUE if column and name == truth else style.TEXT_COLOUR,
            )
    style.footnote(
        figure,
        f"Left: validation images. Beside each: the nearest of {candidates:,} training images, by "
        "the Euclidean distance of\nthe activations of fc7; the same class is blue.",
    )
    return figure
