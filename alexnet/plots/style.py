"""The common style of all figures, and the functions that draw their parts.

The colours are from the palette of Okabe and Ito, which people with any common kind of colour
blindness can distinguish.
"""

import functools
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Rectangle
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator
from numpy.typing import NDArray

from alexnet.metrics import confused_pairs

Array = NDArray[Any]

TEXT_COLOUR = "#222222"
SECONDARY_COLOUR = "#6b6b6b"
GRID_COLOUR = "#d9d9d9"
BLUE = "#0072B2"
VERMILION = "#D55E00"
GREEN = "#009E73"

SMALL_FONT = 8.5
NORMAL_FONT = 9.5
LARGE_FONT = 13.0

# The lightest colour is not white, so that a count of 1 is visible on the white background.
COUNT_COLOURS = LinearSegmentedColormap.from_list("counts", ["#cfe2f3", "#4f9bd0", BLUE, "#06283d"])


def new_figure(height: float, title: str) -> Figure:
    """An empty figure 900 pixels wide.

    Args:
        height: in inches of 100 pixels.
        title: what the figure shows, in one line.
    """
    layout = ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.06)
    figure = Figure(figsize=(9.0, height), dpi=100, facecolor="white", layout=layout)
    figure.suptitle(
        title, x=0.012, ha="left", fontsize=LARGE_FONT, fontweight="bold", color=TEXT_COLOUR
    )
    return figure


def text_figure(figure: Figure, text: str) -> Figure:
    """The figure with one sentence in place of a picture."""
    axes = picture_axes(figure.add_subplot())
    axes.text(
        0.5, 0.5, text, ha="center", va="center", fontsize=NORMAL_FONT, color=SECONDARY_COLOUR
    )
    return figure


def footnote(figure: Figure, text: str) -> None:
    """Lines of text at the bottom of a figure."""
    figure.supxlabel(
        text, x=0.012, ha="left", fontsize=NORMAL_FONT, color=SECONDARY_COLOUR, linespacing=1.5
    )


def panel_title(axes: Axes, text: str) -> None:
    """The title of one panel."""
    axes.set_title(text, loc="left", fontsize=NORMAL_FONT, color=TEXT_COLOUR, pad=6)


def graph_axes(axes: Axes, x: str, y: str) -> Axes:
    """Format the axes of a graph: two spines, a horizontal grid, labels with units."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(SECONDARY_COLOUR)
    axes.tick_params(labelsize=SMALL_FONT, colors=SECONDARY_COLOUR, labelcolor=TEXT_COLOUR)
    axes.set_axisbelow(True)
    axes.grid(axis="y", color=GRID_COLOUR, linewidth=0.6)
    axes.set_xlabel(x, fontsize=SMALL_FONT, color=TEXT_COLOUR)
    axes.set_ylabel(y, fontsize=SMALL_FONT, color=TEXT_COLOUR)
    return axes


def picture_axes(axes: Axes) -> Axes:
    """Format the axes of a picture: no ticks and no spines."""
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    return axes


@functools.cache
def _glyphs() -> frozenset[int]:
    """Code points that matplotlib's font can draw, bold ones too."""
    fonts = [findfont(FontProperties(weight=weight)) for weight in ("normal", "bold")]
    return frozenset.intersection(*(frozenset(get_font(font).get_charmap()) for font in fonts))


def drawn_text(text: str) -> str:
    """Text that is drawn as it is, on one line, for names and whatever else is not our own.

    A dollar sign begins no formula, and a box stands for a character that the font does not have.
    """
    known = (c if c.isprintable() and ord(c) in _glyphs() else "□" for c in " ".join(text.split()))
    return "".join(known).replace("$", r"\$")


def short_name(name: str, limit: int = 22) -> str:
    """A class name's first synonym as ``drawn_text``, cut to at most ``limit`` characters."""
    first = next((part.strip() for part in name.split(",") if part.strip()), name)
    return drawn_text(first if len(first) <= limit else first[: limit - 1].rstrip() + "…")


def distinct_names(names: Sequence[str], limit: int = 22) -> list[str]:
    """Short names. Equal ones (two classes are called "crane") also get their class index."""
    shorts = [short_name(name, limit) for name in names]
    uses = Counter(shorts)
    return [f"{short} #{index}" if uses[short] > 1 else short for index, short in enumerate(shorts)]


def add_count_scale(figure: Figure, mapped: ScalarMappable, axes: Axes) -> None:
    """Add a logarithmic colour scale of image counts beside a panel."""
    bar = figure.colorbar(mapped, ax=axes, shrink=0.7, aspect=30, pad=0.01)
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=SMALL_FONT, labelcolor=TEXT_COLOUR, length=0)
    bar.ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    bar.ax.yaxis.set_major_formatter("{x:,.0f}")
    bar.ax.minorticks_off()
    bar.set_label("images", fontsize=SMALL_FONT, color=TEXT_COLOUR)


def set_pixel_ticks(axis: Axis) -> None:
    """Set ticks at round numbers of pixels on a logarithmic axis."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter("{x:.0f}")
    axis.set_minor_locator(NullLocator())


def draw_curves(
    axes: Axes, epochs: Array, curves: Sequence[tuple[str, Array, str]], value_format: str
) -> None:
    """Draw curves over epochs, each with its name and last value at its right end.

    Args:
        axes: to draw in.
        epochs: (epochs,) numbers.
        curves: name, (epochs,) values and colour; values that are not finite leave a gap.
        value_format: of the last value, for ``str.format``.
    """
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    margin = max(0.5, 0.04 * np.ptp(epochs))
    axes.set_xlim(epochs.min() - margin, epochs.max() + margin)
    ends = []
    for name, values, colour in curves:
        values = np.where(np.isfinite(values), values, np.nan)
        if np.isnan(values).all():
            continue
        marker = "o" if len(epochs) <= 30 else ""
        axes.plot(epochs, values, color=colour, linewidth=1.8, marker=marker, markersize=3.5)
        ends.append((values[~np.isnan(values)][-1], name, colour, np.nanmax(values)))
    if not ends:
        axes.set_ylim(0, 1)
        axes.text(
            0.5, 0.5, "no values", transform=axes.transAxes, ha="center", color=SECONDARY_COLOUR
        )
        return
    ends.sort()
    top = max(max(peak for *_, peak in ends) * 1.06, 1e-9)
    axes.set_ylim(0, top)
    # Labels must not overlap. Each is placed at least a gap above the one below it, and then all
    # are moved down if the highest is outside the axes.
    gap = 0.085
    heights: list[float] = []
    for last, *_ in ends:
        heights.append(max(last / top, heights[-1] + gap if heights else 0.0))
    for index in reversed(range(len(heights))):
        heights[index] = min(heights[index], 0.96 - gap * (len(heights) - 1 - index))
    for (last, name, colour, _), height in zip(ends, heights, strict=True):
        axes.annotate(
            f"{name} {value_format.format(last)}",
            (1.02, height),
            xycoords="axes fraction",
            va="center",
            color=colour,
            fontsize=SMALL_FONT,
        )


def mark_rate_drops(axes: Axes, epochs: Array, rates: Array) -> None:
    """Mark the epochs in which the learning rate is lower than before by a third or more."""
    for before, after, epoch in zip(rates, rates[1:], epochs[1:], strict=False):
        if after < before / 1.5:
            axes.axvline(epoch, color=SECONDARY_COLOUR, linewidth=0.8, linestyle=(0, (4, 3)))
            axes.annotate(
                f"rate {np.format_float_positional(after, 2, fractional=False, trim='-')}",
                (epoch, 1.0),
                xycoords=("data", "axes fraction"),
                xytext=(2, -2),
                textcoords="offset points",
                rotation=90,
                va="top",
                fontsize=7.5,
                color=SECONDARY_COLOUR,
            )


def kernel_mosaic(kernels: Array, columns: int) -> Array:
    """Kernels side by side, each scaled by its largest weight, zero as middle grey.

    Args:
        kernels: (kernels, 3, height, width) float; weights that are not finite count as zero.
        columns: kernels in one row.

    Returns:
        (rows * (height + 1) - 1, columns * (width + 1) - 1, 3) float, 0 to 1; white between
        kernels.
    """
    weights = np.nan_to_num(np.asarray(kernels, float), posinf=0.0, neginf=0.0)
    count, _, height, width = weights.shape
    rows = max(1, -(-count // columns))
    mosaic = np.ones((rows * (height + 1), columns * (width + 1), 3))
    for index, kernel in enumerate(weights):
        row, column = divmod(index, columns)
        y, x = row * (height + 1), column * (width + 1)
        largest = np.abs(kernel).max() or 1.0
        mosaic[y : y + height, x : x + width] = (0.5 + 0.5 * kernel / largest).transpose(1, 2, 0)
    return mosaic[:-1, :-1]


def block_sums(counts: Array, block: int) -> Array:
    """Sums over squares of ``block`` by ``block`` cells; the last ones may be smaller.

    Args:
        counts: (size, size) integers.
        block: cells along a square's side.

    Returns:
        (ceil(size / block), ceil(size / block)) integers.
    """
    starts = np.arange(0, len(counts), block)
    return np.add.reduceat(np.add.reduceat(counts, starts, axis=0), starts, axis=1)


def most_confused(counts: Array, names: Sequence[str], pairs: int = 5) -> str:
    """The largest counts outside the diagonal, as text.

    Args:
        counts: (classes, classes) integers; rows are true classes, columns predicted ones.
        names: a name per class.
        pairs: maximum number of counts.
    """
    confusions = [
        f"{names[pair.true]} classified as {names[pair.predicted]}: {pair.images:,} of "
        f"{counts[pair.true].sum():,}"
        for pair in confused_pairs(counts, pairs)
    ]
    if not confusions:
        return "No image is classified wrongly."
    return "Most frequent confusions\n" + "\n".join(confusions)


def prediction_bars(axes: Axes, truth: str, predictions: Sequence[tuple[str, float]]) -> None:
    """Draw horizontal bars of probability, best first, with class names; the true class is blue.

    Args:
        axes: to draw in.
        truth: name of the true class; empty if it is unknown.
        predictions: class name and probability, 0 to 1.
    """
    picture_axes(axes).set(xlim=(0, 1), ylim=(max(5, len(predictions)) - 0.4, -0.6))
    for row, (name, probability) in enumerate(predictions):
        correct = name == truth
        axes.add_patch(Rectangle((0, row - 0.42), 1, 0.84, color="#f6f6f6", linewidth=0))
        axes.barh(row, probability, 0.84, color="#8cc2e6" if correct else "#dcdcdc")
        axes.text(
            0.02,
            row,
            short_name(name, 19) + (" ✓" if correct else ""),
            va="center",
            fontsize=SMALL_FONT,
            fontweight="bold" if correct else "normal",
            color=TEXT_COLOUR,
        )
        percent = "<1%" if probability < 0.005 else f"{100 * probability:.0f}%"
        axes.text(
            0.98, row, percent, ha="right", va="center", fontsize=SMALL_FONT, color=TEXT_COLOUR
        )
