"""The figures of a training while it runs, in the style of ``alexnet.plots.figures``."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from alexnet.plots import style
from alexnet.plots.style import Array

MAPS_SHOWN = 16
"""Of each layer and tower: always the same ones, so that figures of several steps compare."""

_MOSAIC_COLUMNS = 4
_TOWER_COLOURS = (style.BLUE, style.VERMILION)


def activation_maps(image: Array, maps: Mapping[str, Sequence[Array]]) -> Figure:
    """An image and what the first kernels of each convolution output for it, by tower.

    Args:
        image: (height, width, 3) uint8, the network's input.
        maps: of each layer, for each tower, (kernels, height, width) float, 0 or more.
    """
    towers = max((len(of_layer) for of_layer in maps.values()), default=0)
    figure = style.new_figure(0.6 + 1.85 * max(towers, 1), "Activations of one image")
    if not towers:
        return style.text_figure(figure, "No activations.")
    grid = figure.add_gridspec(towers, 1 + len(maps))
    picture = style.picture_axes(figure.add_subplot(grid[:, 0]))
    picture.imshow(image)
    style.panel_title(picture, "input")
    for column, (layer, of_layer) in enumerate(maps.items(), start=1):
        for row, kernels in enumerate(of_layer):
            axes = style.picture_axes(figure.add_subplot(grid[row, column]))
            axes.imshow(_mosaic(kernels[:MAPS_SHOWN]), cmap="inferno", vmin=0, vmax=1)
            size = "\N{MULTIPLICATION SIGN}".join(map(str, kernels.shape[1:]))
            style.panel_title(axes, f"{layer}, {size}" if row == 0 else "")
            if column == 1:
                axes.set_ylabel(
                    f"tower {row + 1}", fontsize=style.NORMAL_FONT, color=style.TEXT_COLOUR
                )
    style.footnote(
        figure,
        f"The first {MAPS_SHOWN} kernels of each layer after the ReLU, each scaled by its own "
        "largest value; black is 0.",
    )
    return figure


def _mosaic(maps: Array) -> Array:
    """(kernels, height, width), 0 or more → one array, NaN between kernels."""
    maps = np.nan_to_num(np.asarray(maps, float), posinf=0.0)
    count, height, width = maps.shape
    rows = max(1, -(-count // _MOSAIC_COLUMNS))
    mosaic = np.full((rows * (height + 1), _MOSAIC_COLUMNS * (width + 1)), np.nan)
    for index, values in enumerate(maps):
        row, column = divmod(index, _MOSAIC_COLUMNS)
        y, x = row * (height + 1), column * (width + 1)
        mosaic[y : y + height, x : x + width] = values / (values.max() or 1.0)
    return mosaic[:-1, :-1]


def layer_statistics(
    gradients: Mapping[str, Sequence[float]], dead: Mapping[str, Sequence[float]], images: int
) -> Figure:
    """Norms of gradients and shares of dead units, by layer and tower.

    Args:
        gradients: of each layer, the norm for each tower.
        dead: of each layer, per cent of the units for each tower.
        images: for which a dead unit outputs 0.
    """
    figure = style.new_figure(3.6, "Layers")
    left, right = figure.subplots(1, 2)
    style.graph_axes(left, "", "norm of the gradient of the weights")
    style.panel_title(left, "Last update before this step")
    _draw_by_tower(left, gradients)
    if any(norm > 0 for norms in gradients.values() for norm in norms):
        left.set_yscale("log")
        left.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        left.yaxis.set_major_formatter("{x:g}")
        left.yaxis.set_minor_locator(NullLocator())
    style.graph_axes(right, "", "units of the layer (%)")
    style.panel_title(right, f"Dead units: 0 for each of {images} validation images")
    _draw_by_tower(right, dead)
    right.set_ylim(0, max(1.0, 1.1 * max((v for of in dead.values() for v in of), default=0)))
    right.yaxis.set_major_locator(MaxNLocator(5))
    return figure


def _draw_by_tower(axes: Axes, values: Mapping[str, Sequence[float]]) -> None:
    """Points for each layer, in the towers' colours."""
    for tower, colour in enumerate(_TOWER_COLOURS):
        of_tower = [
            (at, of_layer[tower])
            for at, of_layer in enumerate(values.values())
            if tower < len(of_layer) and np.isfinite(of_layer[tower])
        ]
        if of_tower:
            label = f"tower {tower + 1}"
            axes.plot(*zip(*of_tower, strict=True), "os"[tower], color=colour, label=label)
    axes.set_xticks(range(len(values)), list(values))
    if axes.has_data():
        axes.legend(frameon=False, fontsize=style.SMALL_FONT)
