import pytest

from pipelines.console.progress import Progress, duration


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (59.4, "59s"),
        (59.6, "1m00s"),
        (3599, "59m59s"),
        (7500, "2h05m"),
        (532800, "6d04h"),
    ],
)
def test_durations_read_well(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_the_last_line_counts_all(capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress("stage", 2000, "images")
    progress.add(1500)
    progress.add(500)
    assert capsys.readouterr().out == "", "nothing within the first seconds"
    progress.end()
    assert capsys.readouterr().out.startswith("stage: 2,000/2,000 images, ")


def test_lines_come_when_the_last_one_is_old(capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress("stage", 2000, "images")
    progress.begun -= 10
    progress.printed -= 10
    progress.add(1000, "3 rejected")
    line = capsys.readouterr().out
    assert line == "stage: 1,000/2,000 images, 100 images/s, 10s left, 3 rejected\n"
