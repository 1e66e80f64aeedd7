import pytest
from tqdm.utils import disp_len

from pipelines.console.bar import bar_line, wait_line

PARTS = ["3m20s left", "loss 6.905", "2,100 images/s"]


def test_parts_that_fit_are_shown_beside_the_bar() -> None:
    line = bar_line("train", 1, 4, PARTS, 80)
    assert line == f"train  25%|███████▎{21 * ' '}| 3m20s left, loss 6.905, 2,100 images/s"
    assert bar_line("train", 1, 4, PARTS, 46) == "train  25%|██▊        | 3m20s left, loss 6.905"
    assert bar_line("train", 1, 4, PARTS, 28) == "train  25%|█▎   | 3m20s left"
    assert bar_line("train", 1, 4, PARTS, 25) == "train  25% 3m20s left"
    assert bar_line("train", 1, 4, PARTS, 12) == "train  25% 3"


@pytest.mark.parametrize("columns", range(1, 120))
def test_a_line_is_never_too_long(columns: int) -> None:
    for parts in (PARTS, ["reading 大文件夹\n\xff"], []):
        assert disp_len(bar_line("preprocess", 1, 3, parts, columns)) <= columns
        assert disp_len(wait_line(" ".join(parts), 12.3, columns)) <= columns


@pytest.mark.parametrize(("done", "total", "percent"), [(0, 0, 100), (0, 9, 0), (9, 9, 100)])
def test_the_ends(done: int, total: int, percent: int) -> None:
    line = bar_line("stage", done, total, [], 80)
    assert line.startswith(f"stage {percent:3d}%|")
    assert (" " in line[11:]) is (done < total or not total)


def test_the_time_of_a_wait_is_never_cut_off() -> None:
    assert wait_line("train: waiting for x", 12.9, 80) == "train: waiting for x (12s)"
    assert wait_line("train: waiting for x", 12.9, 20) == "train: wait... (12s)"


@pytest.mark.parametrize("columns", range(30, 80))
def test_a_secret_is_removed_before_a_text_is_cut(columns: int) -> None:
    uri = "http://user:correct-horse-battery@host/path"
    assert "correct" not in wait_line(f"waiting for {uri}", 1, columns)
    assert "correct" not in bar_line("train", 1, 2, [f"waiting for {uri}"], columns)
