"""The figures of the reports: each function takes arrays and returns a matplotlib ``Figure``.

No function uses ``pyplot`` or any other global state, so figures can be drawn in any thread of any
process. Every figure is 900 pixels wide. With too little data it contains a sentence instead.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from alexnet.plots import style
from alexnet.plots.style import Array
from alexnet.recipes import IMAGE_SIZE

_KERNEL_COLUMNS = 16
_MAX_NAMED_CLASSES = 30
_MAX_CELLS = 360  # Per side of the drawn matrix. Cells smaller than two pixels are not visible.


def learning_curves(history: Sequence[Mapping[str, float]]) -> Figure:
    """Loss and errors after each epoch, with marks where the learning rate drops.

    Args:
        history: one record per epoch with any of ``epoch``, ``train_loss``, ``val_loss``,
            ``train_top1_error``, ``val_top1_error``, ``val_top5_error`` (per cent, 0 to 100) and
            ``learning_rate``; missing values are not drawn.
    """
    figure = style.new_figure(4.0, "Learning curves")
    if not history:
        return style.text_figure(figure, "No epoch is finished yet.")
    epochs = np.array([record.get("epoch", i + 1) for i, record in enumerate(history)], float)

    def series(key: str) -> Array:
        return np.array([record.get(key, np.nan) for record in history], float)

    loss, error = figure.subplots(1, 2)
    style.graph_axes(loss, "epoch", "cross-entropy (nats)")
    style.panel_title(loss, "Loss of the true class")
    style.graph_axes(error, "epoch", "images (%)")
    meaning = "Error: true class not the first (top-1)"
    if any("val_top5_error" in record for record in history):
        meaning += " or among the first 5 (top-5)"
    style.panel_title(error, meaning)
    style.draw_curves(
        loss,
        epochs,
        [
            ("training", series("train_loss"), style.VERMILION),
            ("validation", series("val_loss"), style.BLUE),
        ],
        "{:.2f}",
    )
    style.draw_curves(
        error,
        epochs,
        [
            ("training top-1", series("train_top1_error"), style.VERMILION),
            ("validation top-1", series("val_top1_error"), style.BLUE),
            ("validation top-5", series("val_top5_error"), style.GREEN),
        ],
        "{:.1f}%",
    )
    for axes in (loss, error):
        style.mark_rate_drops(axes, epochs, series("learning_rate"))
    diverged = [
        epoch
        for epoch, record in zip(epochs, history, strict=True)
        if any(not np.isfinite(record.get(key, 0.0)) for key in ("train_loss", "val_loss"))
    ]
    if diverged:
        style.footnote(figure, f"The loss is not a finite number from epoch {diverged[0]:g} on.")
    return figure


def first_layer_kernels(towers: Sequence[Array]) -> Figure:
    """The first layer's kernels as small pictures, one panel for each tower.

    Each kernel is scaled by its own largest weight, with zero as middle grey.

    Args:
        towers: each (kernels, 3, height, width) float, in the panels' order from top to bottom.
    """
    columns = max([1, *(min(_KERNEL_COLUMNS, len(tower)) for tower in towers)])
    rows = [max(1, -(-len(tower) // columns)) for tower in towers]
    cell = 8.6 / columns if columns >= 8 else 0.9
    height = max(1.5, 0.4 + sum(0.34 + count * cell for count in rows))
    figure = style.new_figure(height, "Kernels of the first layer")
    if not towers:
        return style.text_figure(figure, "No kernels.")
    panels = figure.subplots(len(towers), 1, squeeze=False, height_ratios=rows)[:, 0]
    for number, (axes, tower) in enumerate(zip(panels, towers, strict=True), start=1):
        mosaic = style.kernel_mosaic(tower, columns)
        style.picture_axes(axes).imshow(mosaic, interpolation="nearest")
        axes.set_anchor("W")
        weights = np.nan_to_num(np.asarray(tower, float), posinf=0.0, neginf=0.0)
        colour = np.square(weights - weights.mean(axis=1, keepdims=True)).sum()
        share = 100 * colour / max(np.square(weights).sum(), np.finfo(float).tiny)
        title = f"Tower {number}: {len(tower)} kernels"
        style.panel_title(axes, f"{title}, colour is {share:.0f}% of the squared weights")
    return figure


def confusion_matrix(counts: Array, names: Sequence[str]) -> Figure:
    """The number of images of each class that are classified as each class.

    Args:
        counts: (classes, classes) integers; rows are true classes, columns predicted ones.
        names: a name per class.

    Raises:
        ValueError: the counts are not square, or their size is not the number of names.
    """
    counts = np.asarray(counts, np.int64)
    if counts.ndim != 2 or counts.shape != (len(names), len(names)):
        raise ValueError(f"counts of shape {counts.shape} do not fit {len(names)} names")
    many = len(names) > _MAX_NAMED_CLASSES
    cell = min(0.6, 7.2 / max(1, len(names)))
    height = 9.5 if many else 3.4 + cell * len(names)
    figure = style.new_figure(height, "Confusion matrix")
    if not counts.any():
        return style.text_figure(figure, "No images.")
    axes = figure.add_subplot()
    shorts = style.distinct_names(names)
    title = f"{np.trace(counts):,} of {counts.sum():,} images are classified correctly (diagonal)"
    if many:
        block = -(-len(names) // _MAX_CELLS)
        sums = style.block_sums(counts, block)
        image = axes.imshow(
            np.ma.masked_equal(sums, 0),
            cmap=style.COUNT_COLOURS,
            norm=LogNorm(1, max(2, sums.max())),
            interpolation="nearest",
        )
        axes.set(xticks=[], yticks=[])
        style.add_count_scale(figure, image, axes)
        if block > 1:
            title += f"; a cell is {block} by {block} classes"
    else:
        shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
        axes.imshow(np.ma.masked_equal(shares, 0), cmap=style.COUNT_COLOURS, norm=Normalize(0, 1))
        axes.set_anchor("W")
        axes.set_xticks(range(len(names)), shorts, rotation=90)
        axes.set_yticks(range(len(names)), shorts)
        axes.tick_params(length=0, labelsize=style.SMALL_FONT, labelcolor=style.TEXT_COLOUR)
        for row, column in zip(*np.nonzero(counts), strict=True):
            colour = "white" if shares[row, column] > 0.4 else style.TEXT_COLOUR
            text = f"{counts[row, column]}"
            axes.text(column, row, text, ha="center", va="center", fontsize=7.5, color=colour)
    style.panel_title(axes, title)
    axes.set_xlabel("predicted class", fontsize=style.NORMAL_FONT, color=style.TEXT_COLOUR)
    axes.set_ylabel("true class", fontsize=style.NORMAL_FONT, color=style.TEXT_COLOUR)
    axes.spines[:].set_color(style.GRID_COLOUR)
    style.footnote(figure, style.most_confused(counts, shorts))
    return figure


def predictions_panel(
    images: Array, truths: Sequence[str], top5: Sequence[Sequence[tuple[str, float]]]
) -> Figure:
    """Images with their true class and the network's five best predictions.

    Args:
        images: (images, height, width, 3) uint8.
        truths: the true class of each image; an empty name if it is unknown.
        top5: the predictions for each image as (class name, probability 0 to 1), best first.
    """
    columns = 4
    rows = -(-len(images) // columns)
    figure = style.new_figure(max(1.5, 0.75 + 3.5 * rows), "Images and their best predictions")
    if not len(images):
        return style.text_figure(figure, "No images.")
    known = [(truth, best) for truth, best in zip(truths, top5, strict=True) if truth]
    correct = sum(bool(best) and best[0][0] == truth for truth, best in known)
    style.footnote(
        figure,
        "The true class is blue and has a tick. "
        f"It is the first prediction for {correct} of {len(known)} images."
        if known
        else "The true classes are unknown.",
    )
    grid = figure.add_gridspec(2 * rows, columns, height_ratios=[2.1, 1.25] * rows)
    for index, (image, truth, predictions) in enumerate(zip(images, truths, top5, strict=True)):
        row, column = divmod(index, columns)
        picture = style.picture_axes(figure.add_subplot(grid[2 * row, column]))
        picture.imshow(image)
        picture.set_xlabel(
            style.short_name(truth) or "class unknown",
            fontsize=style.NORMAL_FONT,
            fontweight="bold",
            color=style.TEXT_COLOUR,
        )
        bars = figure.add_subplot(grid[2 * row + 1, column])
        style.prediction_bars(bars, truth, predictions)
    return figure


def contact_sheet(images: Array, captions: Sequence[str], title: str) -> Figure:
    """Small images, each with a caption.

    Args:
        images: (images, height, width, 3) uint8.
        captions: a caption per image, truncated at the first comma like class names.
        title: of the figure.
    """
    columns = 6
    rows = -(-len(images) // columns)
    figure = style.new_figure(max(1.5, 0.5 + 1.64 * rows), title)
    if not len(images):
        return style.text_figure(figure, "No images.")
    grid = figure.add_gridspec(rows, columns)
    for index, (image, caption) in enumerate(zip(images, captions, strict=True)):
        axes = style.picture_axes(figure.add_subplot(grid[divmod(index, columns)]))
        axes.imshow(image)
        axes.set_xlabel(
            style.short_name(caption), fontsize=style.SMALL_FONT, color=style.TEXT_COLOUR
        )
    return figure


def mean_image(mean: Array, rgb_covariance: Array) -> Figure:
    """The training set's mean image, and the principal components of its colours.

    Args:
        mean: (height, width, 3) float, 0 to 255.
        rgb_covariance: (3, 3) covariance of red, green and blue, in squared levels of 0 to 255.
    """
    figure = style.new_figure(4.1, "Mean image and principal components of RGB")
    grid = figure.add_gridspec(3, 2, width_ratios=[1, 1.25])
    picture = style.picture_axes(figure.add_subplot(grid[:, 0]))
    levels = np.clip(np.nan_to_num(np.asarray(mean, float)), 0, 255)
    picture.imshow(np.rint(levels).astype(np.uint8))
    style.panel_title(picture, "Subtracted from every image")
    variances, directions = np.linalg.eigh(np.nan_to_num(np.asarray(rgb_covariance, float)))
    variances = np.maximum(variances[::-1], 0)
    directions = directions[:, ::-1]
    steps = np.linspace(-2, 2, 201)
    for component in range(3):
        # An eigenvector's sign is arbitrary. Here its largest channel increases to the right.
        direction = directions[:, component]
        direction = direction * np.sign(direction[np.argmax(np.abs(direction))])
        deviation = float(np.sqrt(variances[component]))
        ramp = levels.mean(axis=(0, 1)) + steps[:, None] * deviation * direction
        axes = style.picture_axes(figure.add_subplot(grid[component, 1]))
        swatch = np.rint(np.clip(ramp, 0, 255)).astype(np.uint8)[None]
        axes.imshow(swatch, aspect="auto", extent=(-2, 2, 0, 1))
        share = 100 * variances[component] / max(variances.sum(), np.finfo(float).tiny)
        title = f"Component {component + 1}: standard deviation {deviation:.1f} levels"
        style.panel_title(axes, f"{title}, {share:.0f}% of the variance")
    axes.set_xticks([-2, 0, 2], ["\u22122 deviations", "mean colour", "+2 deviations"])
    axes.tick_params(length=0, labelsize=style.SMALL_FONT, labelcolor=style.TEXT_COLOUR)
    return figure


def original_sizes(widths: ArrayLike, heights: ArrayLike) -> Figure:
    """The sizes of the original images, before they were resized to 256x256.

    Args:
        widths: (images,) pixels.
        heights: (images,) pixels.
    """
    wide = np.asarray(widths, float).ravel()
    high = np.asarray(heights, float).ravel()
    known = (wide > 0) & (high > 0)
    wide, high = wide[known], high[known]
    figure = style.new_figure(4.2, "Sizes of the original images")
    if not wide.size:
        return style.text_figure(figure, "No image has a known size.")
    pairs, repeats = np.unique(np.stack([wide, high]), axis=1, return_counts=True)
    most_common = pairs[:, repeats.argmax()]
    sides = np.concatenate([wide, high, [IMAGE_SIZE]])
    edges = np.geomspace(sides.min() / 1.4, sides.max() * 1.4, 61)
    both, shorter = figure.subplots(1, 2)
    style.graph_axes(both, "width (pixels)", "height (pixels)")
    counts = np.histogram2d(wide, high, bins=[edges, edges])[0].T
    mesh = both.pcolormesh(
        edges,
        edges,
        np.ma.masked_equal(counts, 0),
        cmap=style.COUNT_COLOURS,
        norm=LogNorm(1, max(2, counts.max())),
    )
    both.set(xscale="log", yscale="log", aspect="equal")
    size = "\N{MULTIPLICATION SIGN}".join(f"{side:.0f}" for side in most_common)
    style.panel_title(both, f"Most common: {size}, {repeats.max():,} of {wide.size:,} images")
    style.add_count_scale(figure, mesh, both)
    style.graph_axes(shorter, "shorter side (pixels)", "images")
    short = np.minimum(wide, high)
    shorter.hist(short, bins=edges, color=style.BLUE)
    shorter.set_xscale("log")
    shorter.yaxis.set_major_formatter("{x:,.0f}")
    shorter.axvline(IMAGE_SIZE, color=style.VERMILION, linewidth=1.2)
    enlarged = 100 * float(np.mean(short < IMAGE_SIZE))
    style.panel_title(shorter, f"{enlarged:.1f}% are smaller than {IMAGE_SIZE} (line) and enlarged")
    for axis in (both.xaxis, both.yaxis, shorter.xaxis):
        style.set_pixel_ticks(axis)
    return figure
