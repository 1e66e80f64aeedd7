"""The writer of curves: a store that fails for a while, and a real server that is killed."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from mlflow import MlflowClient

from alexnet.errors import UserError
from alexnet.training.checkpoint import TrainState
from pipelines.settings import Settings
from pipelines.tracking import metric_writer
from pipelines.tracking.metric_writer import MetricWriter, Point, StoreUnavailableError
from pipelines.tracking.run import MetricStore, active_run, open_run
from pipelines.tracking.store import connect


class Store:
    """Keeps points; can be away, lose its answers or refuse."""

    def __init__(self) -> None:
        self.points: list[Point] = []
        self.requests = 0
        self.largest = 0
        self.away = threading.Event()
        self.lost_answers = 0
        self.refusing = False

    def last_step(self, curve: str) -> int:
        self._answer()
        return max((point.step for point in self.points if curve in point.values), default=-1)

    def write(self, points: Sequence[Point]) -> None:
        self._answer()
        if self.refusing:
            raise ValueError("no such run")
        self.largest = max(self.largest, sum(len(point.values) for point in points))
        self.points += points
        if self.lost_answers:
            self.lost_answers -= 1
            raise StoreUnavailableError

    def _answer(self) -> None:
        self.requests += 1
        if self.away.is_set():
            raise StoreUnavailableError


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metric_writer, "MIN_BACKOFF_S", 0.001)
    monkeypatch.setattr(metric_writer, "MAX_BACKOFF_S", 0.02)


@pytest.fixture
def store() -> Store:
    return Store()


def both(step: int) -> dict[str, float]:
    return {"loss": float(step), "speed": 0.5}


def test_while_the_store_is_away_nothing_is_lost_and_nobody_waits(store: Store) -> None:
    writer = MetricWriter(store)
    for step in range(1, 2001):
        if step == 500:
            store.away.set()
        begun = time.monotonic()
        writer.write(both(step), step)
        assert time.monotonic() - begun < 0.5
    begun = time.monotonic()
    left = writer.flush(0.2)
    assert 0.2 <= time.monotonic() - begun < 1
    assert left == len(writer.pending()) >= 1500
    assert [point.step for point in writer.pending()] == list(range(2001 - left, 2001))
    store.away.clear()
    assert writer.flush(10) == 0
    assert writer.pending() == []
    assert [point.step for point in store.points] == list(range(1, 2001))
    assert [point.values["loss"] for point in store.points] == list(range(1, 2001))
    assert store.largest == metric_writer.MAX_BATCH_VALUES


def test_pauses_grow_to_a_bound(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    enough = threading.Event()

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 9:
            enough.set()
            store.away.clear()

    monkeypatch.setattr("pipelines.curves.time.sleep", sleep)
    store.away.set()
    writer = MetricWriter(store)
    writer.write(both(1), 1)
    assert enough.wait(5)
    assert writer.flush(5) == 0
    assert slept[:6] == [0.001, 0.002, 0.004, 0.008, 0.016, 0.02]
    assert set(slept[5:]) == {0.02}


def test_a_point_whose_answer_was_lost_is_not_written_again(store: Store) -> None:
    store.lost_answers = 3
    writer = MetricWriter(store)
    for step in range(1, 50):
        writer.write(both(step), step)
        writer.write({"epoch": float(step)}, step)
        time.sleep(0.0005)
    assert writer.flush(10) == 0
    assert [p.step for p in store.points if "loss" in p.values] == list(range(1, 50))
    assert [p.step for p in store.points if "epoch" in p.values] == list(range(1, 50))


def test_after_a_restart_only_what_is_missing_is_written(store: Store) -> None:
    """The store is away when the second writer begins, and knows more than its checkpoint."""
    first = MetricWriter(store)
    for step in (1, 2, 3):
        first.write(both(step), step)
    first.flush(10)
    store.away.set()
    first.write(both(4), 4)
    first.write({"epoch": 1.0}, 4)
    position = replace(TrainState(), pending_metrics=first.pending())
    kept = json.loads(json.dumps(position.pending_metrics))
    assert [step for step, _, _ in kept] == [4, 4]
    store.points.append(Point(4, 0, both(4)))  # The process wrote one more before it was killed.
    again = MetricWriter(store, kept)
    for step in (5, 6):
        again.write(both(step), step)
    assert again.flush(0.05) == 4
    store.away.clear()
    assert again.flush(10) == 0
    first.flush(10)
    assert [(p.step, p.kind) for p in store.points if p.step < 5] == [
        (1, "loss"),
        (2, "loss"),
        (3, "loss"),
        (4, "loss"),
        (4, "epoch"),
    ]
    assert [p.step for p in store.points if p.step >= 5] == [5, 6]


def test_a_full_queue_drops_its_oldest_points_and_counts_them(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metric_writer, "MAX_QUEUE", 50)
    store.away.set()
    writer = MetricWriter(store)
    for step in range(1, 601):
        writer.write(both(step), step)
    assert writer.lost >= 600 - 50 - metric_writer.MAX_BATCH_VALUES // 2
    assert writer.flush(0) == 600
    store.away.clear()
    assert writer.flush(10) == writer.lost
    steps = [point.step for point in store.points]
    assert steps == sorted(steps)
    assert steps[-50:] == list(range(551, 601))
    assert len(steps) == 600 - writer.lost


def test_refused_points_are_counted_and_writing_goes_on(store: Store) -> None:
    store.refusing = True
    writer = MetricWriter(store)
    writer.write(both(1), 1)
    assert writer.flush(10) == writer.lost == 1
    store.refusing = False
    writer.write(both(2), 2)
    assert writer.flush(10) == 1
    assert [point.step for point in store.points] == [2]


def test_points_of_a_deleted_run_are_refused(tmp_path: Path) -> None:
    local = connect(Settings(workdir=str(tmp_path)))
    run_id = open_run(local, "train", resume=None, parent=None)
    writer = MetricWriter(MetricStore(local.uri, run_id))
    writer.write(both(1), 1)
    assert writer.flush(10) == 0
    local.client.delete_run(run_id)
    writer.write(both(2), 2)
    assert writer.flush(10) == writer.lost == 1


class Server:
    """``mlflow server`` on a port and in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.folder = folder
        self.uri = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        places = ["--backend-store-uri", f"sqlite:///{self.folder}/mlflow.db"]
        places += ["--artifacts-destination", str(self.folder / "artifacts")]
        where = ["--host", "127.0.0.1", "--port", str(self.port), "--workers", "1"]
        with (self.folder / "log").open("a") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "mlflow", "server", *places, *where],
                cwd=self.folder,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + 60
        while True:
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"{self.uri}/health", timeout=5).close()
                return
            assert time.monotonic() < deadline, (self.folder / "log").read_text()
            time.sleep(0.1)

    def kill(self) -> None:
        if self.process:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None


@pytest.fixture
def mlflow_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """As a training worker sees it."""
    for name, value in (("MAX_RETRIES", "0"), ("TIMEOUT", "10")):
        monkeypatch.setenv(f"MLFLOW_HTTP_REQUEST_{name}", value)
    found = Server(tmp_path)
    found.start()
    try:
        yield found
    finally:
        found.kill()


def test_a_killed_server_gets_every_point_exactly_once(
    mlflow_server: Server, tmp_path: Path
) -> None:
    settings = Settings(workdir=str(tmp_path / "work"), tracking_uri=mlflow_server.uri)
    (tmp_path / "work").mkdir()
    store = connect(settings)
    run_id = open_run(store, "train", resume=None, parent=None)
    writer = MetricWriter(MetricStore(store.uri, run_id))
    ended = threading.Event()
    steps = 0

    def train() -> None:
        nonlocal steps
        while not ended.wait(0.01):
            steps += 1
            writer.write(both(steps), steps)
            if steps % 10 == 0:
                writer.write({"epoch": steps / 10}, steps)

    stage = open_run(store, "stage", resume=None, parent=None)

    def lose_server_in(stage: str) -> None:
        with active_run(store, stage) as run:
            mlflow_server.kill()
            run.log_json({}, "a.json")

    training = threading.Thread(target=train)
    training.start()
    try:
        time.sleep(0.7)
        with pytest.raises(UserError, match="the same command again"):
            lose_server_in(stage)
        before = steps
        assert writer.flush(0.3) > 0
        # A worker that begins anew while the server is away, with what the checkpoint kept.
        heirs = MetricWriter(MetricStore(store.uri, run_id), writer.pending()[:20])
        time.sleep(0.3)
        assert heirs.pending()
        mlflow_server.start()
        assert heirs.flush(20) == 0
        with active_run(store, open_run(store, "", resume=stage, parent=None)):
            time.sleep(0.3)
    finally:
        ended.set()
        training.join()
    assert steps > before
    assert store.client.get_run(stage).info.status == "FINISHED"
    assert writer.flush(20) == 0
    assert writer.lost == heirs.lost == 0
    for curve, expected in (
        ("loss", range(1, steps + 1)),
        ("speed", range(1, steps + 1)),
        ("epoch", range(10, steps + 1, 10)),
    ):
        points = MlflowClient(store.uri).get_metric_history(run_id, curve)
        assert [point.step for point in points] == list(expected), curve
