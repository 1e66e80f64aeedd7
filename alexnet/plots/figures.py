"""The pictures a person looks at: arrays in, one ``matplotlib.figure.Figure`` out.

Nothing here touches ``pyplot`` or any other global state, so figures can be drawn from any
thread of any process. Every figure is 900 pixels wide and copes with too little data.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from alexnet.plots import style
from alexnet.plots.style import Array

_KERNEL_COLUMNS = 16
_MANY_CLASSES = 30
_MOST_CELLS = 360  # side of the drawn matrix: smaller squares than two pixels can't be seen
_SHORTER_SIDE = 256


def learning_curves(history: Sequence[Mapping[str, float]]) -> Figure:
    """Loss and error after each epoch, with the drops of the learning rate marked.

    Args:
        history: one record per epoch with any of ``epoch``, ``train_loss``, ``val_loss``,
            ``train_top1_error``, ``val_top1_error``, ``val_top5_error`` (per cent, 0 to 100) and
            ``learning_rate``; what is missing isn't drawn.
    """
    figure = style.new_figure(4.0, "Learning, epoch by epoch")
    if not history:
        return style.empty(figure, "No epoch has ended yet.")
    epochs = np.array([record.get("epoch", i + 1) for i, record in enumerate(history)], float)

    def series(key: str) -> Array:
        return np.array([record.get(key, np.nan) for record in history], float)

    loss, error = figure.subplots(1, 2)
    style.plain(loss, "epoch", "cross-entropy (nats)")
    style.heading(loss, "Loss: how unlikely the right class seemed")
    style.plain(error, "epoch", "images (%)")
    style.heading(error, "Error: the right class not guessed first (top-1), or in five (top-5)")
    style.lines(
        loss,
        epochs,
        [
            ("training", series("train_loss"), style.VERMILION),
            ("validation", series("val_loss"), style.BLUE),
        ],
        "{:.2f}",
    )
    style.lines(
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
        style.rate_drops(axes, epochs, series("learning_rate"))
    broken = [
        epoch
        for epoch, record in zip(epochs, history, strict=True)
        if any(not np.isfinite(record.get(key, 0.0)) for key in ("train_loss", "val_loss"))
    ]
    if broken:
        style.footnote(figure, f"The loss stops being a finite number in epoch {broken[0]:g}.")
    return figure


def first_layer_kernels(towers: Sequence[Array]) -> Figure:
    """The first layer's kernels as small pictures, one group per tower.

    Each kernel is scaled by its own largest weight, with zero as middle grey.

    Args:
        towers: each (kernels, 3, height, width) float; a tower per group, top to bottom.
    """
    columns = max([1, *(min(_KERNEL_COLUMNS, len(tower)) for tower in towers)])
    rows = [max(1, -(-len(tower) // columns)) for tower in towers]
    cell = 8.6 / columns if columns >= 8 else 0.9
    height = max(1.5, 0.4 + sum(0.34 + count * cell for count in rows))
    figure = style.new_figure(height, "What the first layer looks for: its kernels as pictures")
    if not towers:
        return style.empty(figure, "No kernels.")
    panels = figure.subplots(len(towers), 1, squeeze=False, height_ratios=rows)[:, 0]
    for number, (axes, tower) in enumerate(zip(panels, towers, strict=True), start=1):
        style.bare(axes).imshow(style.kernel_mosaic(tower, columns), interpolation="nearest")
        axes.set_anchor("W")
        weights = np.nan_to_num(np.asarray(tower, float), posinf=0.0, neginf=0.0)
        colour = np.square(weights - weights.mean(axis=1, keepdims=True)).sum()
        share = 100 * colour / max(np.square(weights).sum(), np.finfo(float).tiny)
        style.heading(
            axes, f"Tower {number}: {len(tower)} kernels, {share:.0f}% of their strength in colour"
        )
    return figure


def confusion_matrix(counts: Array, names: Sequence[str]) -> Figure:
    """How many images of each class were taken for each class.

    Args:
        counts: (classes, classes) integers; rows are true classes, columns predicted ones.
        names: a name per class.

    Raises:
        ValueError: the counts are not square, or the names are not as many.
    """
    counts = np.asarray(counts, np.int64)
    if counts.ndim != 2 or counts.shape != (len(names), len(names)):
        raise ValueError(f"counts of shape {counts.shape} do not fit {len(names)} names")
    total = counts.sum()
    many = len(names) > _MANY_CLASSES
    cell = min(0.6, 7.2 / max(1, len(names)))
    height = 9.5 if many else 3.4 + cell * len(names)
    figure = style.new_figure(height, "Which class is taken for which")
    if not total:
        return style.empty(figure, "No image has been counted yet.")
    axes = figure.add_subplot()
    shorts = style.distinct_names(names)
    heading = f"{np.trace(counts):,} of {total:,} images are right: they lie on the diagonal"
    if many:
        block = -(-len(names) // _MOST_CELLS)
        pooled = style.pool(counts, block)
        image = axes.imshow(
            np.ma.masked_equal(pooled, 0),
            cmap=style.COUNTS,
            norm=LogNorm(1, max(2, pooled.max())),
            interpolation="nearest",
        )
        axes.set(xticks=[], yticks=[])
        style.count_bar(figure, image, axes)
        if block > 1:
            heading += f"; a square is {block} by {block} classes"
    else:
        shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
        axes.imshow(np.ma.masked_equal(shares, 0), cmap=style.COUNTS, norm=Normalize(0, 1))
        axes.set_anchor("W")
        axes.set_xticks(range(len(names)), shorts, rotation=90)
        axes.set_yticks(range(len(names)), shorts)
        axes.tick_params(length=0, labelsize=style.SMALL, labelcolor=style.INK)
        for row, column in zip(*np.nonzero(counts), strict=True):
            colour = "white" if shares[row, column] > 0.4 else style.INK
            text = f"{counts[row, column]}"
            axes.text(column, row, text, ha="center", va="center", fontsize=7.5, color=colour)
    style.heading(axes, heading)
    axes.set_xlabel("predicted class", fontsize=style.NORMAL, color=style.INK)
    axes.set_ylabel("true class", fontsize=style.NORMAL, color=style.INK)
    axes.spines[:].set_color(style.FAINT)
    style.footnote(figure, style.most_confused(counts, shorts))
    return figure


def predictions_panel(
    images: Array, truths: Sequence[str], top5: Sequence[Sequence[tuple[str, float]]]
) -> Figure:
    """Images with their true class and the network's five best guesses.

    Args:
        images: (images, height, width, 3) uint8.
        truths: the true class per image; an empty name where it isn't known.
        top5: per image the guesses as (class name, probability 0 to 1), best first.
    """
    columns = 4
    rows = -(-len(images) // columns)
    figure = style.new_figure(max(1.5, 0.75 + 3.5 * rows), "Images and the network's best guesses")
    if not len(images):
        return style.empty(figure, "No images.")
    known = [(truth, guesses) for truth, guesses in zip(truths, top5, strict=True) if truth]
    first = sum(bool(guesses) and guesses[0][0] == truth for truth, guesses in known)
    style.footnote(
        figure,
        f"Blue with a tick is the right class: the first guess for {first} of {len(known)} images."
        if known
        else "The right classes are not known.",
    )
    grid = figure.add_gridspec(2 * rows, columns, height_ratios=[2.1, 1.25] * rows)
    for index, (image, truth, guesses) in enumerate(zip(images, truths, top5, strict=True)):
        row, column = divmod(index, columns)
        picture = style.bare(figure.add_subplot(grid[2 * row, column]))
        picture.imshow(image)
        picture.set_xlabel(
            style.short_name(truth) or "class not known",
            fontsize=style.NORMAL,
            fontweight="bold",
            color=style.INK,
        )
        style.guess_bars(figure.add_subplot(grid[2 * row + 1, column]), truth, guesses)
    return figure


def contact_sheet(images: Array, captions: Sequence[str], title: str) -> Figure:
    """Many small images with a caption each.

    Args:
        images: (images, height, width, 3) uint8.
        captions: a caption per image, cut at the first comma like class names.
        title: what the images are.
    """
    columns = 6
    rows = -(-len(images) // columns)
    figure = style.new_figure(max(1.5, 0.5 + 1.64 * rows), title)
    if not len(images):
        return style.empty(figure, "No images.")
    grid = figure.add_gridspec(rows, columns)
    for index, (image, caption) in enumerate(zip(images, captions, strict=True)):
        axes = style.bare(figure.add_subplot(grid[divmod(index, columns)]))
        axes.imshow(image)
        axes.set_xlabel(style.short_name(caption), fontsize=style.SMALL, color=style.INK)
    return figure


def mean_image(mean: Array, rgb_covariance: Array) -> Figure:
    """The training set's mean image, and how its colours vary.

    Args:
        mean: (height, width, 3) float, 0 to 255.
        rgb_covariance: (3, 3) covariance of red, green and blue, in squared levels of 0 to 255.
    """
    figure = style.new_figure(4.1, "The average image, and how colours vary around it")
    grid = figure.add_gridspec(3, 2, width_ratios=[1, 1.25])
    picture = style.bare(figure.add_subplot(grid[:, 0]))
    levels = np.clip(np.nan_to_num(np.asarray(mean, float)), 0, 255)
    picture.imshow(np.rint(levels).astype(np.uint8))
    style.heading(picture, "Subtracted from every image")
    variances, directions = np.linalg.eigh(np.nan_to_num(np.asarray(rgb_covariance, float)))
    variances = np.maximum(variances[::-1], 0)
    directions = directions[:, ::-1]
    steps = np.linspace(-2, 2, 201)
    for component in range(3):
        # An eigenvector's sign is arbitrary: its strongest channel grows from left to right.
        direction = directions[:, component]
        direction = direction * np.sign(direction[np.argmax(np.abs(direction))])
        deviation = float(np.sqrt(variances[component]))
        ramp = levels.mean(axis=(0, 1)) + steps[:, None] * deviation * direction
        axes = style.bare(figure.add_subplot(grid[component, 1]))
        swatch = np.rint(np.clip(ramp, 0, 255)).astype(np.uint8)[None]
        axes.imshow(swatch, aspect="auto", extent=(-2, 2, 0, 1))
        share = 100 * variances[component] / max(variances.sum(), np.finfo(float).tiny)
        style.heading(
            axes,
            f"Component {component + 1}: standard deviation {deviation:.1f} levels, "
            f"{share:.0f}% of the variance",
        )
    axes.set_xticks([-2, 0, 2], ["\u22122 deviations", "mean colour", "+2 deviations"])
    axes.tick_params(length=0, labelsize=style.SMALL, labelcolor=style.INK)
    return figure


def original_sizes(widths: ArrayLike, heights: ArrayLike) -> Figure:
    """How large the images were before they became 256x256.

    Args:
        widths: (images,) pixels.
        heights: (images,) pixels.
    """
    wide = np.asarray(widths, float).ravel()
    high = np.asarray(heights, float).ravel()
    known = (wide > 0) & (high > 0)
    wide, high = wide[known], high[known]
    figure = style.new_figure(4.2, "How large the original images were")
    if not wide.size:
        return style.empty(figure, "No image has a known size.")
    pairs, repeats = np.unique(np.stack([wide, high]), axis=1, return_counts=True)
    usual = pairs[:, repeats.argmax()]
    sides = np.concatenate([wide, high, [_SHORTER_SIDE]])
    edges = np.geomspace(sides.min() / 1.4, sides.max() * 1.4, 61)
    both, shorter = figure.subplots(1, 2)
    style.plain(both, "width (pixels)", "height (pixels)")
    counts = np.histogram2d(wide, high, bins=[edges, edges])[0].T
    mesh = both.pcolormesh(
        edges,
        edges,
        np.ma.masked_equal(counts, 0),
        cmap=style.COUNTS,
        norm=LogNorm(1, max(2, counts.max())),
    )
    both.set(xscale="log", yscale="log", aspect="equal")
    times = "\N{MULTIPLICATION SIGN}"
    most = f"{usual[0]:.0f}{times}{usual[1]:.0f}"
    style.heading(both, f"Most common: {most}, {repeats.max():,} of {wide.size:,} images")
    style.count_bar(figure, mesh, both)
    style.plain(shorter, "shorter side (pixels)", "images")
    short = np.minimum(wide, high)
    shorter.hist(short, bins=edges, color=style.BLUE)
    shorter.set_xscale("log")
    shorter.yaxis.set_major_formatter("{x:,.0f}")
    shorter.axvline(_SHORTER_SIDE, color=style.VERMILION, linewidth=1.2)
    enlarged = 100 * float(np.mean(short < _SHORTER_SIDE))
    style.heading(shorter, f"Below {_SHORTER_SIDE} (the line) lie {enlarged:.1f}%: enlarged")
    for axis in (both.xaxis, both.yaxis, shorter.xaxis):
        style.pixel_ticks(axis)
    return figure
