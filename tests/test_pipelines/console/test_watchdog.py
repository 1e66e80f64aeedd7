"""Lines about a wait; the intervals are shortened."""

import time

import pytest

from pipelines.console import watchdog
from pipelines.console.progress import Progress
from pipelines.console.watchdog import Watchdog


@pytest.fixture(autouse=True)
def short_intervals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watchdog, "FIRST_S", 0.2)
    monkeypatch.setattr(watchdog, "INTERVAL_S", 0.3)
    monkeypatch.setattr(watchdog, "POLL_S", 0.02)


def test_a_long_wait_is_logged_again_and_again(capsys: pytest.CaptureFixture[str]) -> None:
    with Watchdog("stage", lambda: "waiting for x"):
        time.sleep(0.65)
    assert capsys.readouterr().out.splitlines() == ["stage: waiting for x (0s so far)"] * 2
    time.sleep(0.4)
    assert capsys.readouterr().out == "", "it has ended"


def test_events_begin_the_wait_again(capsys: pytest.CaptureFixture[str]) -> None:
    with Watchdog("stage", lambda: "waiting") as dog:
        for _ in range(10):
            time.sleep(0.05)
            dog.reset()
    assert capsys.readouterr().out == ""


def test_nothing_to_wait_for_and_errors_are_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> str:
        raise RuntimeError("the cluster has ended")

    with Watchdog("stage", lambda: None), Watchdog("stage", fail):
        time.sleep(0.4)
    assert capsys.readouterr().out == ""


def test_progress_that_stands_still(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("stage", 20, "images", waiting_for=lambda: "a CPU") as progress:
        progress.add(5)
        time.sleep(0.35)
        progress.add(15)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "stage: 5/20 images, waiting for the next results (0s so far)"
    assert lines[1].startswith("stage: 20/20 images, ")
    assert len(lines) == 2


def test_progress_that_fails_has_no_last_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ZeroDivisionError), Progress("stage", 20, "images"):
        _ = 1 // 0
    assert capsys.readouterr().out == ""
