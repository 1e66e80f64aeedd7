"""The figures contain the given values at the right positions."""

import itertools
import math
import subprocess
import sys
import time
import warnings
from collections.abc import Sequence

import matplotlib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cbook import is_math_text
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm, to_rgb
from matplotlib.container import BarContainer
from matplotlib.figure import Figure

from alexnet.plots import figures, style

NAMES = ["tench, Tinca tinca", "goldfish, Carassius auratus", "great white shark, man-eater"]


def render(figure: Figure) -> None:
    """Draw the figure into memory."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()  # type: ignore[no-untyped-call]
    width, _ = canvas.get_width_height()
    assert width == 900


def drawn(mapped: ScalarMappable) -> np.ndarray:
    """The array of an image or a mesh, with 0 where nothing is drawn."""
    cells = mapped.get_array()
    assert cells is not None
    return np.ma.filled(cells, 0)


def drawn_image(axes: Axes) -> np.ndarray:
    return drawn(axes.images[0])


def texts(figure: Figure) -> str:
    """All text of a figure."""
    parts = [figure.get_suptitle(), figure.get_supxlabel()]
    for axes in figure.axes:
        parts += [axes.get_title(loc="left"), axes.get_xlabel(), axes.get_ylabel()]
        parts += [text.get_text() for text in axes.texts]
        parts += [label.get_text() for label in (*axes.get_xticklabels(), *axes.get_yticklabels())]
    return "\n".join(parts)


def photos(count: int) -> np.ndarray:
    return np.random.default_rng(count).integers(0, 256, (count, 256, 256, 3), dtype=np.uint8)


def record(epoch: int, **values: float) -> dict[str, float]:
    return {"epoch": epoch, **values}


class TestLearningCurves:
    HISTORY = tuple(
        record(
            epoch,
            train_loss=7.0 / epoch,
            train_top1_error=90.0 / epoch,
            val_loss=6.0 / epoch,
            val_top1_error=80.0 / epoch,
            val_top5_error=60.0 / epoch,
            learning_rate=0.01 if epoch < 4 else 0.001,
        )
        for epoch in range(1, 7)
    )

    def test_each_metric_is_drawn_in_its_panel(self) -> None:
        figure = figures.learning_curves(self.HISTORY)
        render(figure)
        loss, error = figure.axes
        expected = [
            (loss, ["train_loss", "val_loss"]),
            (error, ["train_top1_error", "val_top1_error", "val_top5_error"]),
        ]
        for axes, keys in expected:
            for line, key in zip(axes.lines, keys, strict=False):
                np.testing.assert_array_equal(line.get_xdata(), range(1, 7))
                np.testing.assert_allclose(
                    np.asarray(line.get_ydata(), float), [row[key] for row in self.HISTORY]
                )

    def test_labels_contain_the_last_value_and_do_not_overlap(self) -> None:
        close = [record(1, train_top1_error=99.9, val_top1_error=99.9, val_top5_error=99.0)]
        for history in (self.HISTORY, close):
            figure = figures.learning_curves(history)
            render(figure)
            axes = figure.axes[1]
            labels = [text for text in axes.texts if "top-" in text.get_text()]
            ends = {f"{history[-1][key]:.1f}%" for key in close[0] if key != "epoch"}
            assert len(labels) == 3
            assert {text.get_text().split()[-1] for text in labels} == ends
            boxes = sorted((text.get_window_extent() for text in labels), key=lambda box: box.y0)
            assert boxes[-1].y1 <= axes.get_window_extent().y1
            for lower, upper in itertools.pairwise(boxes):
                assert lower.y1 <= upper.y0

    def test_a_drop_of_the_rate_is_marked_at_its_epoch(self) -> None:
        figure = figures.learning_curves(self.HISTORY)
        for axes in figure.axes:
            marks = [line for line in axes.lines if np.array_equal(line.get_xdata(), [4, 4])]
            assert len(marks) == 1
            assert "rate 0.001" in [text.get_text() for text in axes.texts]

    def test_a_higher_or_equal_rate_is_not_a_drop(self) -> None:
        history = [record(epoch, train_loss=1.0, learning_rate=0.01 * epoch) for epoch in (1, 2)]
        assert len(figures.learning_curves(history).axes[0].lines) == 1

    def test_a_diverged_loss_leaves_a_gap_and_is_in_the_footnote(self) -> None:
        history = [record(1, train_loss=2.0), record(2, train_loss=math.nan), record(3)]
        figure = figures.learning_curves(history)
        render(figure)
        np.testing.assert_array_equal(
            np.asarray(figure.axes[0].lines[0].get_ydata(), float), [2.0, np.nan, np.nan]
        )
        assert figure.axes[0].get_xlim()[1] > 3
        assert "is not a finite number from epoch 2 on" in texts(figure)

    @pytest.mark.parametrize(
        "history", [[], [{}], [record(1, train_loss=0.0)], [record(1, val_loss=math.inf)]]
    )
    def test_too_little_to_draw(self, history: Sequence[dict[str, float]]) -> None:
        render(figures.learning_curves(history))

    def test_a_single_epoch_is_visible(self) -> None:
        figure = figures.learning_curves([record(1, train_loss=2.0)])
        assert figure.axes[0].lines[0].get_marker() == "o"
        assert [tick for tick in figure.axes[0].get_xticks() if 0.5 <= tick <= 1.5] == [1.0]


class TestFirstLayerKernels:
    def test_kernels_are_in_order_in_their_tower(self) -> None:
        towers = list(np.random.default_rng(0).normal(size=(2, 48, 3, 11, 11)))
        figure = figures.first_layer_kernels(towers)
        render(figure)
        assert len(figure.axes) == 2
        assert figure.axes[0].get_position().y0 >= figure.axes[1].get_position().y1
        for number, (axes, tower) in enumerate(zip(figure.axes, towers, strict=True), start=1):
            assert axes.get_title(loc="left").startswith(f"Tower {number}: 48 kernels")
            cells = drawn_image(axes)
            assert cells.shape == (3 * 12 - 1, 16 * 12 - 1, 3)
            for index, kernel in enumerate(tower):
                row, column = divmod(index, 16)
                block = cells[row * 12 : row * 12 + 11, column * 12 : column * 12 + 11]
                scaled = (2 * block - 1).transpose(2, 0, 1) * np.abs(kernel).max()
                np.testing.assert_allclose(scaled, kernel, atol=1e-12)
            gaps = np.r_[cells[11].ravel(), cells[:, 11].ravel()]
            assert (gaps == 1).all()

    def test_zero_and_nan_weights_are_middle_grey(self) -> None:
        figure = figures.first_layer_kernels(
            [np.zeros((2, 3, 11, 11)), np.full((1, 3, 5, 5), np.nan)]
        )
        render(figure)
        assert (drawn_image(figure.axes[0])[:, :11] == 0.5).all()
        assert (drawn_image(figure.axes[1])[:, :5] == 0.5).all()

    def test_fraction_of_colour(self) -> None:
        pattern = np.random.default_rng(1).normal(size=(4, 1, 11, 11))
        grey = np.repeat(pattern, 3, axis=1)
        red_against_green = pattern * np.array([1, -1, 0])[:, None, None]
        figure = figures.first_layer_kernels([grey, red_against_green])
        assert "colour is 0% of the squared weights" in figure.axes[0].get_title(loc="left")
        assert "colour is 100% of the squared weights" in figure.axes[1].get_title(loc="left")

    @pytest.mark.parametrize("counts", [[], [0], [1], [5, 17], [96]])
    def test_any_number_of_towers_and_kernels(self, counts: list[int]) -> None:
        render(figures.first_layer_kernels([np.ones((count, 3, 11, 11)) for count in counts]))


class TestConfusionMatrix:
    def test_few_classes_have_names_and_numbers(self) -> None:
        counts = np.array([[8, 2, 0], [1, 3, 6], [0, 0, 4]])
        figure = figures.confusion_matrix(counts, NAMES)
        render(figure)
        (axes,) = figure.axes
        shorts = ["tench", "goldfish", "great white shark"]
        assert [label.get_text() for label in axes.get_xticklabels()] == shorts
        assert [label.get_text() for label in axes.get_yticklabels()] == shorts
        np.testing.assert_allclose(drawn_image(axes), counts / counts.sum(1, keepdims=True))
        numbers = {tuple(map(float, text.get_position())): text.get_text() for text in axes.texts}
        assert numbers == {
            (column, row): str(counts[row, column])
            for row, column in zip(*counts.nonzero(), strict=True)
        }
        assert "15 of 24 images are classified correctly" in texts(figure)

    def test_the_footnote_lists_the_largest_confusions_first(self) -> None:
        counts = np.array([[8, 2, 0], [1, 3, 6], [0, 0, 4]])
        note = figures.confusion_matrix(counts, NAMES).get_supxlabel().splitlines()
        assert note == [
            "Most frequent confusions",
            "goldfish classified as great white shark: 6 of 10",
            "tench classified as goldfish: 2 of 10",
            "goldfish classified as tench: 1 of 10",
        ]

    def test_many_classes_have_logarithmic_colours_and_no_labels(self) -> None:
        counts = np.random.default_rng(0).poisson(0.5, (40, 40))
        counts[3, 17] = 99
        figure = figures.confusion_matrix(
            counts, [f"class {index}, synonym" for index in range(40)]
        )
        render(figure)
        axes = figure.axes[0]
        np.testing.assert_array_equal(drawn_image(axes), counts)
        assert isinstance(axes.images[0].norm, LogNorm)
        assert not [*axes.get_xticks(), *axes.get_yticks()]
        assert "class 3 classified as class 17: 99 of" in texts(figure)

    def test_a_thousand_classes_are_summed_in_blocks(self) -> None:
        random = np.random.default_rng(0)
        counts = np.zeros((1000, 1000), int)
        np.add.at(counts, (random.integers(0, 1000, 50_000), random.integers(0, 1000, 50_000)), 1)
        counts[700, 20] = 37
        start = time.process_time()
        figure = figures.confusion_matrix(counts, [f"class {index}" for index in range(1000)])
        render(figure)
        assert time.process_time() - start < 3
        cells = drawn_image(figure.axes[0])
        assert cells.shape == (334, 334)
        assert cells.sum() == counts.sum()
        assert cells[233, 6] == counts[699:702, 18:21].sum()
        assert cells[333, 333] == counts[999, 999]
        assert "class 700 classified as class 20: 37 of" in texts(figure)

    def test_classes_with_equal_names_get_their_index(self) -> None:
        counts = np.array([[3, 2], [0, 4]])
        figure = figures.confusion_matrix(counts, ["crane", "crane, machine"])
        assert "crane #0 classified as crane #1: 2 of 5" in texts(figure)

    @pytest.mark.parametrize("size", [0, 1, 2, 30, 31])
    @pytest.mark.parametrize("value", [0, 1])
    def test_few_or_no_counts(self, size: int, value: int) -> None:
        counts = value * np.eye(size, dtype=int)
        figure = figures.confusion_matrix(counts, ["x"] * size)
        render(figure)
        nothing_wrong = "No image is classified wrongly."
        assert (nothing_wrong in texts(figure)) == bool(counts.any())

    def test_a_wrong_number_of_names_is_an_error(self) -> None:
        with pytest.raises(ValueError, match=r"\(2, 2\) do not fit 3 names"):
            figures.confusion_matrix(np.eye(2, dtype=int), NAMES)


class TestPredictionsPanel:
    TOP5 = (
        ((NAMES[0], 0.7), (NAMES[1], 0.2), ("c", 0.05), ("d", 0.03), ("e", 0.02)),
        (("c", 0.6), ("d", 0.2), (NAMES[1], 0.1), ("e", 0.06), ("f", 0.04)),
        (("c", 0.6), ("d", 0.2), ("e", 0.1), ("f", 0.06), ("g", 0.001)),
        (("c", 0.6), ("d", 0.2), ("e", 0.1), ("f", 0.06), ("g", 0.04)),
        ((NAMES[0], 1.0),),
    )
    TRUTHS = (NAMES[0], NAMES[1], NAMES[2], "", "")

    def test_images_bars_and_the_true_class(self) -> None:
        images = photos(5)
        figure = figures.predictions_panel(images, self.TRUTHS, self.TOP5)
        render(figure)
        assert len(figure.axes) == 10
        positions_of_true_class = [0, 2, None, None, None]
        for index, (picture, chart) in enumerate(
            zip(figure.axes[::2], figure.axes[1::2], strict=True)
        ):
            np.testing.assert_array_equal(drawn_image(picture), images[index])
            bars = [
                bar
                for group in chart.containers
                if isinstance(group, BarContainer)
                for bar in group
            ]
            assert [bar.get_width() for bar in bars] == [p for _, p in self.TOP5[index]]
            colours = [to_rgb(bar.get_facecolor()) for bar in bars]
            blue = [position for position, (r, _, b) in enumerate(colours) if b - r > 0.2]
            expected = positions_of_true_class[index]
            assert blue == ([] if expected is None else [expected])
            assert chart.get_position().y1 <= picture.get_position().y0
        labels = [axes.get_xlabel() for axes in figure.axes[::2]]
        assert labels == ["tench", "goldfish", "great white shark", *["class unknown"] * 2]
        assert "the first prediction for 1 of 3 images" in texts(figure)

    def test_percentages(self) -> None:
        figure = figures.predictions_panel(photos(1), [NAMES[2]], [self.TOP5[2]])
        shown = [text.get_text() for text in figure.axes[1].texts]
        assert shown == ["c", "60%", "d", "20%", "e", "10%", "f", "6%", "g", "<1%"]

    def test_no_images_and_unknown_classes(self) -> None:
        render(figures.predictions_panel(photos(0), [], []))
        figure = figures.predictions_panel(photos(1), [""], [[("a", math.nan)]])
        render(figure)
        assert "The true classes are unknown." in texts(figure)
        render(figures.predictions_panel(photos(1), ["a"], [[]]))


class TestContactSheet:
    def test_images_in_reading_order_with_captions(self) -> None:
        images = photos(8)
        captions = [*NAMES, "a caption that is much too long for it", *"abcd"]
        figure = figures.contact_sheet(images, captions, "Eight images")
        render(figure)
        assert figure.get_suptitle() == "Eight images"
        for axes, image in zip(figure.axes, images, strict=True):
            np.testing.assert_array_equal(drawn_image(axes), image)
        shown = [axes.get_xlabel() for axes in figure.axes]
        assert shown[:4] == ["tench", "goldfish", "great white shark", "a caption that is muc…"]
        boxes = [axes.get_position() for axes in figure.axes]
        assert boxes[0].x1 <= boxes[1].x0
        assert boxes[0].y0 >= boxes[6].y1

    @pytest.mark.parametrize("count", [0, 1, 7])
    def test_any_number_of_images(self, count: int) -> None:
        render(figures.contact_sheet(photos(count), ["x"] * count, "Some"))


class TestMeanImage:
    def test_mean_image_and_components(self) -> None:
        mean = np.random.default_rng(0).uniform(0, 255, (256, 256, 3)).astype(np.float32)
        directions = np.array([[1, 1, 1], [1, -1, 0], [-1, -1, 2]]) / np.sqrt([[3], [2], [6]])
        deviations = np.array([30.0, 10.0, 2.0])
        covariance = directions.T @ np.diag(deviations**2) @ directions
        figure = figures.mean_image(mean, covariance)
        render(figure)
        picture, *ramps = figure.axes
        np.testing.assert_array_equal(drawn_image(picture), np.rint(mean))
        assert len(ramps) == 3
        for axes, direction, deviation in zip(ramps, directions, deviations, strict=True):
            assert f"standard deviation {deviation:.1f} levels" in axes.get_title(loc="left")
            ramp = drawn_image(axes)[0].astype(float)
            np.testing.assert_allclose(ramp[100], mean.mean((0, 1)), atol=0.6)
            across = ramp[-1] - ramp[0]
            np.testing.assert_allclose(abs(across @ direction), 4 * deviation, atol=1.5)
            assert across[np.argmax(np.abs(across))] > 0
        assert "90% of the variance" in ramps[0].get_title(loc="left")

    @pytest.mark.parametrize("value", [0.0, math.nan])
    def test_constant_and_nan_images(self, value: float) -> None:
        mean = np.full((256, 256, 3), value, np.float32)
        render(figures.mean_image(mean, np.full((3, 3), value)))


class TestOriginalSizes:
    def test_every_image_is_counted_once(self) -> None:
        random = np.random.default_rng(0)
        widths = np.r_[np.full(40, 500), random.integers(60, 3000, 160), 0, -1]
        heights = np.r_[np.full(40, 375), random.integers(60, 3000, 160), 10, 5]
        figure = figures.original_sizes(widths, heights)
        render(figure)
        both, shorter, _ = figure.axes
        assert drawn(both.collections[0]).sum() == 200
        assert sum(patch.get_height() for patch in shorter.patches) == 200  # type: ignore[attr-defined]
        assert "500\N{MULTIPLICATION SIGN}375, 40 of 200 images" in both.get_title(loc="left")
        enlarged = np.mean(np.minimum(widths, heights)[:200] < 256)
        assert f"{100 * enlarged:.1f}%" in shorter.get_title(loc="left")

    def test_width_is_horizontal_and_height_is_vertical(self) -> None:
        both = figures.original_sizes([1000], [100]).axes[0]
        cells = drawn(both.collections[0]).reshape(60, 60)
        ((row, column),) = np.argwhere(cells)
        assert row < 30 < column

    @pytest.mark.parametrize("sizes", [[], [1], [256, 256], [0]])
    def test_few_or_unknown_sizes(self, sizes: list[int]) -> None:
        render(figures.original_sizes(sizes, sizes))


@pytest.mark.slow
def test_no_global_state_is_changed() -> None:
    before = dict(matplotlib.rcParams)
    render(figures.learning_curves([record(1, train_loss=1.0)]))
    assert dict(matplotlib.rcParams) == before
    script = (
        "import sys, alexnet.plots.figures\n"
        "print([name for name in ('matplotlib.pyplot', 'ray', 'mlflow') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


HOSTILE = st.one_of(
    st.text(min_size=1, max_size=30),
    st.text("$\\^_{}%#&~<>|`*[]\n\t,", min_size=1, max_size=12),
    st.sampled_from(
        ["$$", "$x^$ $", r"\$\frac{$", "猫", "😀👨‍👩‍👧", "مرحبا", "caf\udce9", ",,", "\u202e\x00"]
    ),
)


@settings(max_examples=15)
@given(st.lists(HOSTILE, min_size=4, max_size=4, unique=True))
def test_any_name_is_drawn_as_it_is(names: list[str]) -> None:
    """Matplotlib's warnings, for instance of characters that its font does not have, are errors."""
    predictions = [(name, 0.25) for name in names]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        render(figures.confusion_matrix(np.array([[0, 1, 2, 3]] * 4), names))
        render(figures.predictions_panel(photos(2)[:, :8, :8], names[:2], [predictions] * 2))
        render(figures.contact_sheet(photos(4)[:, :8, :8], names, "Title"))
    for name in names:
        text = style.drawn_text(name)
        assert not is_math_text(text)
        ascii_part = [c for c in name if " " < c <= "~"]
        assert [c for c in text.replace(r"\$", "$") if c <= "~" and c != " "] == ascii_part


def test_a_character_without_a_glyph_is_a_box() -> None:
    assert style.drawn_text("a猫\n\x1b犬$5") == r"a□ □□\$5"
