"""Servers that do not answer, at the start or for a while; secrets in their URIs."""

import os
import socket
import threading
import time

import pytest

from alexnet.errors import UserError
from pipelines.tracking import server


@pytest.fixture
def port() -> int:
    """A port on which no process listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@pytest.fixture(autouse=True)
def _short_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "POLL_INTERVAL_S", 0.05)


def test_a_server_that_answers_again_is_waited_for(
    port: int, capsys: pytest.CaptureFixture[str]
) -> None:
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", port))
    threading.Timer(0.4, listener.listen).start()
    started = time.monotonic()
    server.wait_for(f"http://user:secret@127.0.0.1:{port}")
    assert 0.3 < time.monotonic() - started < 5
    server.wait_for(f"http://127.0.0.1:{port}")
    listener.close()
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(f"tracking: server http://***@127.0.0.1:{port} does not answer (")
    assert line.endswith("waiting for it, 5m00s at most")


def test_the_wait_for_a_server_has_a_limit(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "SERVER_WAIT_S", 0.3)
    with pytest.raises(UserError, match="finished work is kept, checkpoints of the training too"):
        server.wait_for(f"http://127.0.0.1:{port}")


def test_a_command_does_not_wait_for_a_server_before_it_starts(port: int) -> None:
    with pytest.raises(UserError, match=f"127.0.0.1:{port} does not answer .* --tracking-uri"):
        server.check_reachable(f"http://127.0.0.1:{port}")


@pytest.mark.parametrize("uri", [None, "sqlite:////data/mlflow.db", "postgresql://u:p@host/db"])
def test_a_store_without_a_server_is_reachable(uri: str | None) -> None:
    server.check_reachable(uri)


def test_an_unavailable_server_is_named_without_its_password() -> None:
    uri = "https://user:secret@host:5000/mlflow"
    assert "secret" not in str(server.unavailable_error(uri, f"API request to {uri}/api failed"))


def test_timeouts_of_the_environment_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "5")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "")
    monkeypatch.delenv("MLFLOW_HTTP_REQUEST_TIMEOUT")
    server.set_short_timeouts()
    assert os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "5"
    assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "10"
