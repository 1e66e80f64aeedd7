"""One restrained look for every figure, and the pieces that figures are put together from.

The colours are Okabe and Ito's, which stay apart for every common kind of colour blindness.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Rectangle
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator
from numpy.typing import NDArray

Array = NDArray[Any]

INK = "#222222"
QUIET = "#6b6b6b"
FAINT = "#d9d9d9"
BLUE = "#0072B2"
VERMILION = "#D55E00"
GREEN = "#009E73"

SMALL = 8.5
NORMAL = 9.5
LARGE = 13.0

# Starts visibly off white, so that a single count isn't lost on an empty (white) background.
COUNTS = LinearSegmentedColormap.from_list("counts", ["#cfe2f3", "#4f9bd0", BLUE, "#06283d"])


def new_figure(height: float, title: str) -> Figure:
    """An empty figure 900 pixels wide.

    Args:
        height: in inches of 100 pixels.
        title: what the figure shows, in one line.
    """
    layout = ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.06)
    figure = Figure(figsize=(9.0, height), dpi=100, facecolor="white", layout=layout)
    figure.suptitle(title, x=0.012, ha="left", fontsize=LARGE, fontweight="bold", color=INK)
    return figure


def empty(figure: Figure, text: str) -> Figure:
    """The figure with one quiet sentence in place of a picture."""
    axes = bare(figure.add_subplot())
    axes.text(0.5, 0.5, text, ha="center", va="center", fontsize=NORMAL, color=QUIET)
    return figure


def footnote(figure: Figure, text: str) -> None:
    """Quiet lines below everything else."""
    figure.supxlabel(text, x=0.012, ha="left", fontsize=NORMAL, color=QUIET, linespacing=1.5)


def heading(axes: Axes, text: str) -> None:
    """The title of one panel."""
    axes.set_title(text, loc="left", fontsize=NORMAL, color=INK, pad=6)


def plain(axes: Axes, x: str, y: str) -> Axes:
    """Axes of a graph: two spines, a faint horizontal grid, labels with units."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(QUIET)
    axes.tick_params(labelsize=SMALL, colors=QUIET, labelcolor=INK)
    axes.set_axisbelow(True)
    axes.grid(axis="y", color=FAINT, linewidth=0.6)
    axes.set_xlabel(x, fontsize=SMALL, color=INK)
    axes.set_ylabel(y, fontsize=SMALL, color=INK)
    return axes


def bare(axes: Axes) -> Axes:
    """Axes of a picture: nothing but the picture."""
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    return axes


def short_name(name: str, limit: int = 22) -> str:
    """A class name's first synonym, cut to at most ``limit`` characters."""
    first = name.split(",")[0].strip()
    return first if len(first) <= limit else first[: limit - 1].rstrip() + "…"


def distinct_names(names: Sequence[str], limit: int = 22) -> list[str]:
    """Short names; equal ones (two classes are called "crane") also get their class index."""
    shorts = [short_name(name, limit) for name in names]
    seen = Counter(shorts)
    return [f"{short} #{index}" if seen[short] > 1 else short for index, short in enumerate(shorts)]


def count_bar(figure: Figure, mapped: ScalarMappable, axes: Axes) -> None:
    """A slim logarithmic scale of image counts beside a panel."""
    bar = figure.colorbar(mapped, ax=axes, shrink=0.7, aspect=30, pad=0.01)
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=SMALL, labelcolor=INK, length=0)
    bar.ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    bar.ax.yaxis.set_major_formatter("{x:,.0f}")
    bar.ax.minorticks_off()
    bar.set_label("images", fontsize=SMALL, color=INK)


def pixel_ticks(axis: Axis) -> None:
    """Round numbers of pixels on a logarithmic axis."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter("{x:.0f}")
    axis.set_minor_locator(NullLocator())


def lines(axes: Axes, epochs: Array, curves: Sequence[tuple[str, Array, str]], form: str) -> None:
    """Curves over epochs, each with its name and last value at its right end.

    Args:
        axes: where to draw.
        epochs: (epochs,) numbers.
        curves: name, (epochs,) values and colour; values that aren't finite leave a gap.
        form: how a value is written, as for ``str.format``.
    """
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    room = max(0.5, 0.04 * np.ptp(epochs))
    axes.set_xlim(epochs.min() - room, epochs.max() + room)
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
        axes.text(0.5, 0.5, "nothing recorded", transform=axes.transAxes, ha="center", color=QUIET)
        return
    ends.sort()
    top = max(max(peak for *_, peak in ends) * 1.06, 1e-9)
    axes.set_ylim(0, top)
    # Labels nearer to each other than a line of text would overprint, so they move apart: each
    # at least a gap above the one below it, and all of them down again if the last is too high.
    gap = 0.085
    places: list[float] = []
    for last, *_ in ends:
        places.append(max(last / top, places[-1] + gap if places else 0.0))
    for index in reversed(range(len(places))):
        places[index] = min(places[index], 0.96 - gap * (len(places) - 1 - index))
    for (last, name, colour, _), place in zip(ends, places, strict=True):
        axes.annotate(
            f"{name} {form.format(last)}",
            (1.02, place),
            xycoords="axes fraction",
            va="center",
            color=colour,
            fontsize=SMALL,
        )


def rate_drops(axes: Axes, epochs: Array, rates: Array) -> None:
    """A thin line where the learning rate fell by a third or more, with the new rate."""
    for before, after, epoch in zip(rates, rates[1:], epochs[1:], strict=False):
        if after < before / 1.5:
            axes.axvline(epoch, color=QUIET, linewidth=0.8, linestyle=(0, (4, 3)))
            axes.annotate(
                f"rate {np.format_float_positional(after, 2, fractional=False, trim='-')}",
                (epoch, 1.0),
                xycoords=("data", "axes fraction"),
                xytext=(2, -2),
                textcoords="offset points",
                rotation=90,
                va="top",
                fontsize=7.5,
                color=QUIET,
            )


def kernel_mosaic(kernels: Array, columns: int) -> Array:
    """Kernels side by side, each scaled by its largest weight, zero as middle grey.

    Args:
        kernels: (kernels, 3, height, width) float; weights that aren't finite count as zero.
        columns: kernels in one row.

    Returns:
        (rows * (height + 1) - 1, columns * (width + 1) - 1, 3) float, 0 to 1; white between
        kernels.
    """
    weights = np.nan_to_num(np.asarray(kernels, float), posinf=0.0, neginf=0.0)
    count, _, height, width = weights.shape
    rows = max(1, -(-count // columns))
    sheet = np.ones((rows * (height + 1), columns * (width + 1), 3))
    for index, kernel in enumerate(weights):
        row, column = divmod(index, columns)
        y, x = row * (height + 1), column * (width + 1)
        largest = np.abs(kernel).max() or 1.0
        sheet[y : y + height, x : x + width] = (0.5 + 0.5 * kernel / largest).transpose(1, 2, 0)
    return sheet[:-1, :-1]


def pool(counts: Array, block: int) -> Array:
    """Sums over squares of ``block`` by ``block`` cells; the last ones may be cut off.

    Args:
        counts: (size, size) integers.
        block: cells along a square's side.

    Returns:
        (ceil(size / block), ceil(size / block)) integers.
    """
    starts = np.arange(0, len(counts), block)
    return np.add.reduceat(np.add.reduceat(counts, starts, axis=0), starts, axis=1)


def most_confused(counts: Array, names: Sequence[str], pairs: int = 5) -> str:
    """The largest counts off the diagonal, in words.

    Args:
        counts: (classes, classes) integers; rows are true classes, columns predicted ones.
        names: a name per class.
        pairs: how many at most.
    """
    wrong = counts - np.diag(np.diag(counts))
    order = np.argsort(-wrong, axis=None, kind="stable")[:pairs]
    found = [
        f"{names[true]} taken for {names[predicted]}: {wrong[true, predicted]:,} of "
        f"{counts[true].sum():,}"
        for true, predicted in zip(*np.unravel_index(order, wrong.shape), strict=True)
        if wrong[true, predicted] > 0
    ]
    if not found:
        return "No image was taken for another class."
    return "Most often confused\n" + "\n".join(found)


def guess_bars(axes: Axes, truth: str, guesses: Sequence[tuple[str, float]]) -> None:
    """Horizontal bars of probability, best first, the name on the bar, the right one blue."""
    bare(axes).set(xlim=(0, 1), ylim=(max(5, len(guesses)) - 0.4, -0.6))
    for place, (name, probability) in enumerate(guesses):
        right = name == truth
        axes.add_patch(Rectangle((0, place - 0.42), 1, 0.84, color="#f6f6f6", linewidth=0))
        axes.barh(place, probability, 0.84, color="#8cc2e6" if right else "#dcdcdc")
        axes.text(
            0.02,
            place,
            short_name(name, 19) + (" ✓" if right else ""),
            va="center",
            fontsize=SMALL,
            fontweight="bold" if right else "normal",
            color=INK,
        )
        percent = "<1%" if probability < 0.005 else f"{100 * probability:.0f}%"
        axes.text(0.98, place, percent, ha="right", va="center", fontsize=SMALL, color=INK)
