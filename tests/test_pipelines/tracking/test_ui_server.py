"""``alexnet ui``: a server that answers, ends with Ctrl-C and leaves no process."""

import json
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import requests

from alexnet.errors import UserError
from pipelines import ui
from pipelines.configuration.command_settings import UiSettings
from pipelines.console.redact import SecretUri
from pipelines.tracking.store import Store

ROOT = Path(__file__).parents[3]


def test_the_address_opens_the_runs_as_model_training() -> None:
    page = "#/experiments/7/runs?workflowType=machine_learning"
    own = Store(SecretUri("sqlite:////w/mlflow.db"), "7")
    assert own.runs_address() == f"http://127.0.0.1:5000/{page}"
    assert own.runs_address("http://127.0.0.1:8080") == f"http://127.0.0.1:8080/{page}"
    server = Store(SecretUri("http://user:secret@host/mlflow/"), "7")
    assert server.runs_address() == f"http://***@host/mlflow/{page}"


def test_a_workdir_without_runs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="contains no runs yet; run "):
        ui.run(UiSettings(workdir=str(tmp_path)))
    assert list(tmp_path.iterdir()) == []


def test_a_port_that_is_not_free_is_refused(mlflow_workdir: str) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(UserError, match=f"--port {port}: is not free"):
            ui.run(UiSettings(workdir=mlflow_workdir, port=port))


@pytest.mark.slow
def test_it_answers_and_ends_with_ctrl_c(mlflow_workdir: str, tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "pipelines" / "ui.py"), "--workdir", mlflow_workdir]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stdout
    line = process.stdout.readline()
    match = re.fullmatch(
        r"ui: ((http://127\.0\.0\.1:\d+)/#/experiments/\d+/.*) \(Ctrl-C.*\)\n", line
    )
    assert match, line
    children = psutil.Process(process.pid).children(recursive=True)
    assert children
    assert requests.get(f"{match[2]}/health", timeout=30).text == "OK"
    assert "MLflow" in requests.get(match[2], timeout=30).text
    process.send_signal(signal.SIGINT)
    rest = process.stdout.read().splitlines()
    assert process.wait() == 0
    assert rest[0] == "ui: ended"
    assert json.loads(rest[-1]) == {"stage": "ui", "address": match[1]}
    assert not any(child.is_running() for child in children)
