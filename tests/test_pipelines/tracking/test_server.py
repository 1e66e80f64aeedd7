"""Servers that do not answer, at the start or for a while; secrets in their URIs."""

import contextlib
import os
import socket
import socketserver
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler

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


@contextlib.contextmanager
def proxy(status: int) -> Iterator[tuple[str, list[str]]]:
    """An HTTP proxy that answers every request with a status; its address and the URLs."""
    requested: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            requested.append(self.path)
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server_:
        threading.Thread(target=server_.serve_forever, daemon=True).start()
        try:
            yield f"http://user:secret@127.0.0.1:{server_.server_address[1]}", requested
        finally:
            server_.shutdown()


@pytest.mark.parametrize("status", [200, 404, 502])
def test_a_server_behind_a_proxy_is_reached_as_mlflow_reaches_it(
    monkeypatch: pytest.MonkeyPatch, port: int, status: int
) -> None:
    uri = "http://tracking.invalid:5000"
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    assert server.connection_error(uri)
    with proxy(status) as (address, requested):
        for name in ("http_proxy", "HTTP_PROXY"):
            monkeypatch.setenv(name, address)
        error = server.connection_error(uri)
        assert requested == [f"{uri}/"]
        monkeypatch.setenv("NO_PROXY", "tracking.invalid")
        assert server.connection_error(uri)
        assert requested == [f"{uri}/"], "NO_PROXY is honoured"
    assert (error is None) == (status != 502)
    assert "secret" not in (error or "")


def test_a_proxy_that_does_not_answer_is_one_line(
    monkeypatch: pytest.MonkeyPatch, port: int
) -> None:
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.setenv("http_proxy", f"http://user:secret@127.0.0.1:{port}")
    with pytest.raises(UserError, match=r"through the proxy: .*; start it or correct") as caught:
        server.check_reachable("http://tracking.invalid:5000")
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value)
