"""Metrics of computers other than the driver's, with a fake of NVIDIA's library."""

import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import ray.train
from mlflow.system_metrics.metrics import gpu_monitor

from pipelines.settings import Settings
from pipelines.tracking import node_metrics
from pipelines.tracking.run import open_run
from pipelines.tracking.store import Store, connect
from pipelines.training import state


class FakeNvml(SimpleNamespace):
    """Two GPUs; the load of each is ten times its number."""

    NVMLError = RuntimeError

    def nvmlInit(self) -> None: ...

    def nvmlDeviceGetCount(self) -> int:
        return 2

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return index

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> Any:
        return SimpleNamespace(used=1e9, total=4e9)

    def nvmlDeviceGetUtilizationRates(self, handle: int) -> Any:
        return SimpleNamespace(gpu=10 * handle)

    def nvmlDeviceGetPowerUsage(self, handle: int) -> int:
        return 100_000

    def nvmlDeviceGetEnforcedPowerLimit(self, handle: int) -> int:
        return 400_000


@pytest.fixture
def _two_gpus(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    nvml = FakeNvml()
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    monkeypatch.setattr(gpu_monitor, "pynvml", nvml, raising=False)
    monkeypatch.setattr(node_metrics, "INTERVAL_S", 0.1)
    monkeypatch.setattr(node_metrics, "host_name", lambda: "node7")
    yield
    monkeypatch.undo()
    node_metrics.set_sampling()


@pytest.fixture
def store(mlflow_workdir: str) -> Store:
    return connect(Settings(workdir=mlflow_workdir))


@pytest.mark.slow
@pytest.mark.usefixtures("_two_gpus")
def test_the_gpus_of_a_node_are_in_the_run(store: Store) -> None:
    run_id = open_run(store, "train", resume=None, parent=None)
    name = "system/node7/gpu_1_utilization_percentage"

    def points() -> list[Any]:
        return list(store.client.get_metric_history(run_id, name))

    for _ in range(2):  # The second worker continues the metrics of the first.
        before, end = len(points()), time.monotonic() + 60
        with node_metrics.node_metrics(store.uri, run_id):
            while len(points()) < before + 2 and time.monotonic() < end:
                time.sleep(0.1)
    assert {point.value for point in points()} == {10.0}
    steps = [point.step for point in points()]
    assert len(steps) >= 4
    assert len(set(steps)) == len(steps)
    names = store.client.get_run(run_id).data.metrics.keys()
    assert {"system/node7/gpu_0_memory_usage_percentage", name} < names


def test_without_a_server_the_block_is_executed_all_the_same() -> None:
    done = []
    with node_metrics.node_metrics("http://127.0.0.1:9", "run"):
        done.append(True)
    assert done == [True]


@pytest.mark.parametrize(
    ("driver", "local_rank", "measured"),
    [("other", 0, True), ("other", 1, False), (node_metrics.host_name(), 0, False)],
)
def test_one_worker_on_each_other_node_measures(
    monkeypatch: pytest.MonkeyPatch, driver: str, local_rank: int, measured: bool
) -> None:
    started: list[tuple[str, str]] = []

    def start(uri: str, run_id: str) -> Any:
        started.append((uri, run_id))
        return nullcontext()

    context = SimpleNamespace(get_local_rank=lambda: local_rank)
    monkeypatch.setattr(ray.train, "get_context", lambda: context)
    monkeypatch.setattr(state, "node_metrics", start)
    uri = SimpleNamespace(reveal=lambda: "uri")
    config: Any = SimpleNamespace(driver_host=driver, tracking_uri=uri, run_id="run")
    with state.open_node_metrics(config):
        assert started == [("uri", "run")] * measured
