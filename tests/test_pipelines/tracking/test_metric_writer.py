"""The metric writer with a store that fails for a while, and with a server that is killed."""

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


class FakeStore:
    """Keeps points in memory; can be unavailable, lose its answers or refuse requests."""

    def __init__(self) -> None:
        self.points: list[Point] = []
        self.largest_request = 0
        """Values in it."""
        self.unavailable = threading.Event()
        self.answers_to_lose = 0
        self.refuses = False

    def last_step(self, metric: str) -> int:
        self._check_available()
        return max((point.step for point in self.points if metric in point.values), default=-1)

    def write(self, points: Sequence[Point]) -> None:
        self._check_available()
        if self.refuses:
            raise ValueError("no such run")
        values = sum(len(point.values) for point in points)
        self.largest_request = max(self.largest_request, values)
        self.points += points
        if self.answers_to_lose:
            self.answers_to_lose -= 1
            raise StoreUnavailableError

    def _check_available(self) -> None:
        if self.unavailable.is_set():
            raise StoreUnavailableError


@pytest.fixture(autouse=True)
def _short_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metric_writer, "MIN_BACKOFF_S", 0.001)
    monkeypatch.setattr(metric_writer, "MAX_BACKOFF_S", 0.02)


@pytest.fixture
def store() -> FakeStore:
    return FakeStore()


def values_at(step: int) -> dict[str, float]:
    return {"loss": float(step), "speed": 0.5}


def test_while_the_store_is_unavailable_nothing_is_lost_and_write_returns_at_once(
    store: FakeStore,
) -> None:
    writer = MetricWriter(store)
    for step in range(1, 2001):
        if step == 500:
            store.unavailable.set()
        started = time.monotonic()
        writer.write(values_at(step), step)
        assert time.monotonic() - started < 0.5
    started = time.monotonic()
    pending = writer.flush(0.2)
    assert 0.2 <= time.monotonic() - started < 1
    assert pending == len(writer.pending()) >= 1500
    assert [point.step for point in writer.pending()] == list(range(2001 - pending, 2001))
    store.unavailable.clear()
    assert writer.flush(10) == 0
    assert writer.pending() == []
    assert [point.step for point in store.points] == list(range(1, 2001))
    assert [point.values["loss"] for point in store.points] == list(range(1, 2001))
    assert store.largest_request == metric_writer.MAX_BATCH_VALUES


def test_the_backoff_doubles_up_to_a_limit(
    store: FakeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []
    nine_pauses = threading.Event()

    def sleep(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 9:
            nine_pauses.set()
            store.unavailable.clear()

    monkeypatch.setattr(time, "sleep", sleep)
    store.unavailable.set()
    writer = MetricWriter(store)
    writer.write(values_at(1), 1)
    assert nine_pauses.wait(5)
    assert writer.flush(5) == 0
    assert pauses[:6] == [0.001, 0.002, 0.004, 0.008, 0.016, 0.02]
    assert set(pauses[5:]) == {0.02}


def test_a_point_whose_answer_was_lost_is_not_written_again(store: FakeStore) -> None:
    store.answers_to_lose = 3
    writer = MetricWriter(store)
    for step in range(1, 50):
        writer.write(values_at(step), step)
        writer.write({"epoch": float(step)}, step)
        time.sleep(0.0005)
    assert writer.flush(10) == 0
    assert [p.step for p in store.points if "loss" in p.values] == list(range(1, 50))
    assert [p.step for p in store.points if "epoch" in p.values] == list(range(1, 50))


def test_after_a_restart_only_missing_points_are_written(store: FakeStore) -> None:
    """The store is unavailable when the second writer starts, and has a point too many for it."""
    first = MetricWriter(store)
    for step in (1, 2, 3):
        first.write(values_at(step), step)
    first.flush(10)
    store.unavailable.set()
    first.write(values_at(4), 4)
    first.write({"epoch": 1.0}, 4)
    train_state = replace(TrainState(), pending_metrics=first.pending())
    pending_metrics = json.loads(json.dumps(train_state.pending_metrics))
    assert [step for step, _, _ in pending_metrics] == [4, 4]
    store.points.append(Point(4, 0, values_at(4)))  # Written just before the process was killed.
    second = MetricWriter(store, pending_metrics)
    for step in (5, 6):
        second.write(values_at(step), step)
    assert second.flush(0.05) == 4
    store.unavailable.clear()
    assert second.flush(10) == 0
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
    store: FakeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metric_writer, "MAX_QUEUE", 50)
    store.unavailable.set()
    writer = MetricWriter(store)
    for step in range(1, 601):
        writer.write(values_at(step), step)
    assert writer.dropped >= 600 - 50 - metric_writer.MAX_BATCH_VALUES // 2
    assert writer.flush(0) == 600
    store.unavailable.clear()
    assert writer.flush(10) == writer.dropped
    steps = [point.step for point in store.points]
    assert steps == sorted(steps)
    assert steps[-50:] == list(range(551, 601))
    assert len(steps) == 600 - writer.dropped


def test_refused_points_are_counted_and_later_ones_are_written(store: FakeStore) -> None:
    store.refuses = True
    writer = MetricWriter(store)
    writer.write(values_at(1), 1)
    assert writer.flush(10) == writer.dropped == 1
    store.refuses = False
    writer.write(values_at(2), 2)
    assert writer.flush(10) == 1
    assert [point.step for point in store.points] == [2]


def test_points_of_a_deleted_run_are_refused(mlflow_workdir: str) -> None:
    local = connect(Settings(workdir=mlflow_workdir))
    run_id = open_run(local, "train", resume=None, parent=None)
    writer = MetricWriter(MetricStore(local.uri, run_id))
    writer.write(values_at(1), 1)
    assert writer.flush(10) == 0
    local.client.delete_run(run_id)
    writer.write(values_at(2), 2)
    assert writer.flush(10) == writer.dropped == 1


class MlflowServer:
    """``mlflow server`` on a free port; its files are in a folder."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.folder = folder
        self.uri = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        stores = ["--backend-store-uri", f"sqlite:///{self.folder}/mlflow.db"]
        stores += ["--artifacts-destination", str(self.folder / "artifacts")]
        address = ["--host", "127.0.0.1", "--port", str(self.port), "--workers", "1"]
        with (self.folder / "log").open("a") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "mlflow", "server", *stores, *address],
                cwd=self.folder,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + 180
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
def mlflow_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[MlflowServer]:
    """A server, with the timeouts of a training worker."""
    for name, value in (("MAX_RETRIES", "0"), ("TIMEOUT", "10")):
        monkeypatch.setenv(f"MLFLOW_HTTP_REQUEST_{name}", value)
    server = MlflowServer(tmp_path)
    server.start()
    try:
        yield server
    finally:
        server.kill()


@pytest.mark.slow
@pytest.mark.long
def test_a_killed_server_gets_every_point_exactly_once(
    mlflow_server: MlflowServer, tmp_path: Path
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
        while not ended.wait(0.03):
            steps += 1
            writer.write(values_at(steps), steps)
            if steps % 10 == 0:
                writer.write({"epoch": steps / 10}, steps)

    stage = open_run(store, "stage", resume=None, parent=None)

    def kill_server_in(stage: str) -> None:
        with active_run(store, stage) as run:
            mlflow_server.kill()
            run.log_json({}, "a.json")

    training = threading.Thread(target=train)
    training.start()
    try:
        time.sleep(0.7)
        with pytest.raises(UserError, match="the same command again"):
            kill_server_in(stage)
        before = steps
        assert writer.flush(0.3) > 0
        # A worker that starts while the server is unavailable, with the checkpoint's points.
        restarted = MetricWriter(MetricStore(store.uri, run_id), writer.pending()[:20])
        time.sleep(0.3)
        assert restarted.pending()
        mlflow_server.start()
        assert restarted.flush(60) == 0
        with active_run(store, open_run(store, "", resume=stage, parent=None)):
            time.sleep(0.3)
    finally:
        ended.set()
        training.join()
    assert steps > before
    assert store.client.get_run(stage).info.status == "FINISHED"
    assert writer.flush(120) == 0
    assert writer.dropped == restarted.dropped == 0
    # Read from the database: on a busy computer the server may need more than the timeout.
    client = MlflowClient(f"sqlite:///{mlflow_server.folder}/mlflow.db")
    for metric, expected in (
        ("loss", range(1, steps + 1)),
        ("speed", range(1, steps + 1)),
        ("epoch", range(10, steps + 1, 10)),
    ):
        points = client.get_metric_history(run_id, metric)
        assert [point.step for point in points] == list(expected), metric
