"""Figures of predictions without true labels: which labels, and how certain."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from alexnet.plots import style

_MAX_LABELS = 30


def predicted_labels(counts: Mapping[str, int]) -> Figure:
    """How many files have each label as their best; the most frequent labels.

    Args:
        counts: files by the label's name.
    """
    figure = style.new_figure(1.2 + 0.2 * min(len(counts), _MAX_LABELS), "Best labels")
    if not counts:
        return style.text_figure(figure, "No file has a label.")
    most = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))[:_MAX_LABELS]
    axes = style.graph_axes(figure.add_subplot(), "files", "")
    positions = np.arange(len(most))
    axes.barh(positions, [count for _, count in most], color=style.BLUE)
    axes.set_yticks(positions, style.distinct_names([name for name, _ in most]))
    axes.invert_yaxis()
    axes.xaxis.set_major_formatter("{x:,.0f}")
    if len(counts) > _MAX_LABELS:
        style.footnote(figure, f"The {_MAX_LABELS} most frequent of {len(counts):,} labels.")
    return figure


def confidences(counts: Sequence[int]) -> Figure:
    """How many files have which probability of their best label.

    Args:
        counts: files in each of some bins of equal width from 0 to 1.
    """
    figure = style.new_figure(3.2, "Probability of the best label")
    if not sum(counts):
        return style.text_figure(figure, "No file has a label.")
    axes = style.graph_axes(figure.add_subplot(), "probability", "files")
    width = 1 / len(counts)
    axes.bar(np.arange(len(counts)) * width, counts, width, align="edge", color=style.BLUE)
    axes.set_xlim(0, 1)
    axes.yaxis.set_major_formatter("{x:,.0f}")
    return figure
