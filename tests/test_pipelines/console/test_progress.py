import time

import pytest

from pipelines.console import watchdog
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
def test_the_units_of_a_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_the_last_line_counts_all(capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress("stage", 2000, "images")
    progress.add(1500)
    progress.add(500)
    assert capsys.readouterr().out == "", "nothing within the first seconds"
    progress.end()
    assert capsys.readouterr().out.startswith("stage: 2,000/2,000 images, ")


def test_a_line_is_logged_when_the_last_one_is_old(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    progress = Progress("stage", 2000, "images", started=0.0, printed=0.0)
    monkeypatch.setattr(time, "monotonic", lambda: 10.0)
    progress.add(1000, "3 rejected")
    line = capsys.readouterr().out
    assert line == "stage: 1,000/2,000 images, 100 images/s, 10s left, 3 rejected\n"


def test_the_time_left_decreases_until_the_next_result(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    progress = Progress("stage", 3000, "images", started=0.0, printed=0.0)
    for now, left in (
        (10.0, "20s left"),
        (15.0, "15s left"),
        (35.0, "0s left"),
        (99.0, "waiting 89s for the next results"),
    ):
        monkeypatch.setattr(time, "monotonic", lambda now=now: now)
        if now == 10.0:
            progress.add(1000)
        assert left in progress.bar(200)
    capsys.readouterr()


def test_the_task_stands_before_the_counts(capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress("stage", 30, "MB", task="md5 of a.tar")
    progress.advance_to(30)
    progress.end()
    assert capsys.readouterr().out.startswith("stage: md5 of a.tar: 30/30 MB, ")


@pytest.mark.parametrize(
    ("done", "words"), [(0, "0/30 MB, waiting for a CPU"), (20, "20/30 MB, waiting for the next")]
)
def test_the_cluster_is_waited_for_only_until_the_first_result(
    done: int, words: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watchdog, "FIRST_S", 0.0)
    monkeypatch.setattr(watchdog, "POLL_S", 0.01)
    printed = ""
    with Progress("stage", 30, "MB", waiting_for=lambda: "a CPU") as progress:
        progress.advance_to(done)
        end = time.monotonic() + 10
        while words not in printed and time.monotonic() < end:
            time.sleep(0.01)
            printed += capsys.readouterr().out
    assert f"stage: {words}" in printed
