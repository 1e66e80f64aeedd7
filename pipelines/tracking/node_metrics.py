"""Metrics of the computers on which workers train, such as the load of their GPUs, in MLflow.

MLflow itself measures the driver's computer, and writes ``system/gpu_0_utilization_percentage``
etc. into the run. Workers on other computers write ``system/<host>/gpu_0_utilization_percentage``.
GPUs are measured where the package ``nvidia-ml-py`` is installed (the extra ``gpu``).
"""

import contextlib
import socket
from collections.abc import Iterator

import mlflow
from mlflow.exceptions import MlflowException
from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

from pipelines.tracking import server

INTERVAL_S = 5


def set_sampling() -> None:
    """Set how often MLflow measures in this process."""
    mlflow.set_system_metrics_sampling_interval(INTERVAL_S)
    mlflow.set_system_metrics_samples_before_logging(1)


def host_name() -> str:
    """This computer's name in the names of metrics."""
    return socket.gethostname()


@contextlib.contextmanager
def node_metrics(uri: str, run_id: str) -> Iterator[None]:
    """Inside, this computer's metrics are written to a run; an error does not stop the block.

    If the server does not answer, the measurement ends. A worker that is started again continues
    the metrics of the one before it.
    """
    server.set_short_timeouts()
    set_sampling()
    try:
        monitor = SystemMetricsMonitor(
            run_id, node_id=host_name(), tracking_uri=uri, resume_logging=True
        )
    except MlflowException:
        yield
        return
    monitor.start()
    try:
        yield
    finally:
        monitor.finish()
