"""MLflow's server for the runs of a store that has none, on this computer only."""

import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO

import psutil
import requests

from alexnet.errors import UserError
from pipelines.console.redact import redacted
from pipelines.tracking.store import Store
from pipelines.workdir import Workdir

HOST = "127.0.0.1"
DEFAULT_PORT = 5000
"""MLflow's own; taken if it is free and no other was given."""
START_S = 180
"""Seconds to wait for the first answer; on a slow computer MLflow starts for a minute."""
END_S = 5
_POLL_S = 0.2


@dataclass(frozen=True, slots=True)
class UiServer:
    """A running server."""

    address: str
    process: "subprocess.Popen[bytes]"
    output: IO[bytes]

    def wait(self) -> None:
        """Wait until it ends, which it does not by itself.

        Raises:
            UserError: it has ended.
        """
        self.process.wait()
        raise self.ended()

    def ended(self) -> UserError:
        """The error for a server that has ended by itself, with the last line that it printed."""
        self.output.seek(0)
        lines = self.output.read().decode(errors="replace").split("\n")
        last = next((line for line in reversed(lines) if line.strip()), "it printed nothing")
        return UserError(
            f"MLflow's server has ended with status {self.process.returncode} "
            f"({redacted(last.strip())[:300]}); run `mlflow server` yourself to see more"
        )


@contextlib.contextmanager
def serve(store: Store, workdir: Workdir, port: int | None) -> Iterator[UiServer]:
    """A server that answers, until the end of the block.

    Args:
        store: whose runs are shown.
        workdir: the folder in which it runs.
        port: to listen on; by default ``DEFAULT_PORT``, or any free one if it is not free.

    Raises:
        UserError: the port is not free, or the server does not answer within ``START_S``.
    """
    port = _port(port)
    command = [sys.executable, "-m", "mlflow", "server", "--host", HOST, "--port", str(port)]
    # In the environment, since all users of the computer see the command with its password.
    environment = os.environ | {"MLFLOW_BACKEND_STORE_URI": store.uri}
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            [*command, "--workers", "1"],
            env=environment,
            cwd=workdir.path if os.path.isdir(workdir.path) else None,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            # Ctrl-C in the terminal would reach it too; it is ended below, with its workers.
            start_new_session=True,
        )
        server = UiServer(f"http://{HOST}:{port}", process, output)
        try:
            _wait_for_answer(server)
            yield server
        finally:
            _end(process)


def _port(given: int | None) -> int:
    """A free port.

    Raises:
        UserError: the given one is not free.
    """
    for port in [given] if given else [DEFAULT_PORT, 0]:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with contextlib.suppress(OSError):
                probe.bind((HOST, port))
                return int(probe.getsockname()[1])
    raise UserError(f"--port {given}: is not free; give another one, or none for any that is free")


def _wait_for_answer(server: UiServer) -> None:
    started = time.monotonic()
    while time.monotonic() - started < START_S:
        if server.process.poll() is not None:
            raise server.ended()
        with contextlib.suppress(requests.RequestException), requests.Session() as session:
            session.trust_env = False  # No proxy stands between a computer and itself.
            if session.get(f"{server.address}/health", timeout=5).ok:
                return
        time.sleep(_POLL_S)
    raise UserError(f"MLflow's server does not answer within {START_S} s; try again")


def _end(process: "subprocess.Popen[bytes]") -> None:
    """End the server and its workers."""
    with contextlib.suppress(psutil.Error):
        parent = psutil.Process(process.pid)
        processes = [*parent.children(recursive=True), parent]
        for each in processes:
            with contextlib.suppress(psutil.Error):
                each.terminate()
        for each in psutil.wait_procs(processes, timeout=END_S)[1]:
            with contextlib.suppress(psutil.Error):
                each.kill()
    process.wait()
