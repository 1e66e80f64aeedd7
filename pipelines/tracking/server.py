"""The tracking server: whether it answers, and how long to wait for it."""

import logging
import os
import socket
import time
from urllib.parse import urlsplit

import requests
from requests.utils import get_environ_proxies, select_proxy

from alexnet.errors import UserError, one_line
from pipelines.console.log import stage_logger
from pipelines.console.progress import duration
from pipelines.console.redact import redacted
from pipelines.console.watchdog import Watchdog

SERVER_WAIT_S = 300
"""Seconds to wait for a server that answered when the command started."""
POLL_INTERVAL_S = 2.0
"""Seconds between two attempts to connect."""

LOGGERS = ("mlflow", "alembic", "mlflow.store", "mlflow.models", "urllib3")
"""Loggers of MLflow's client."""


def configure_loggers() -> None:
    """Keep the client's warnings out of the terminal: commands log what matters themselves."""
    for name in LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)


def set_short_timeouts() -> None:
    """Let this process's requests fail within seconds; MLflow would retry for minutes.

    Variables that are set already stay as they are.
    """
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")


def connection_error(uri: str) -> str | None:
    """Why a server can't be connected to, within seconds; None if it can.

    A store without a server, such as a database file, always returns None.
    """
    parts = urlsplit(uri)
    if parts.scheme not in ("http", "https"):
        return None
    if select_proxy(uri, get_environ_proxies(uri)):
        return _error_behind_proxy(uri)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        socket.create_connection((parts.hostname or "", port), timeout=5).close()
    except OSError as error:
        return str(error)
    return None


def _error_behind_proxy(uri: str) -> str | None:
    """The same for a server that requests, as MLflow makes them, reach through a proxy only."""
    try:
        status = requests.head(uri, timeout=5).status_code
    except requests.exceptions.SSLError:  # It answers; MLflow may accept its certificate.
        return None
    except requests.RequestException as error:
        return f"through the proxy: {one_line(error)}"
    return f"the proxy answers with status {status}" if status in (407, 502, 503, 504) else None


def check_reachable(uri: str | None) -> None:
    """Check that a server accepts connections; MLflow itself would retry for minutes.

    Raises:
        UserError: no server accepts connections at ``--tracking-uri``.
    """
    if uri and (reason := connection_error(uri)):
        raise UserError(
            f"tracking server {redacted(uri)} does not answer ({redacted(reason)}); start it or "
            "correct --tracking-uri"
        )


def wait_for(uri: str) -> None:
    """Wait for a server that does not answer, and log that it is waited for.

    Raises:
        UserError: it does not answer within ``SERVER_WAIT_S``.
    """
    reason = connection_error(uri)
    if not reason:
        return
    stage_logger("tracking").info(
        "server %s does not answer (%s); waiting for it, %s at most",
        redacted(uri),
        reason,
        duration(SERVER_WAIT_S),
    )
    started = time.monotonic()
    with Watchdog("tracking", lambda: f"waiting for the server {redacted(uri)}"):
        while reason := connection_error(uri):
            if time.monotonic() - started > SERVER_WAIT_S:
                raise unavailable_error(uri, reason)
            time.sleep(POLL_INTERVAL_S)


def unavailable_error(uri: str, reason: str) -> UserError:
    """The error for a server that answered at the start and does not any more."""
    return UserError(
        f"tracking store {redacted(uri)} does not answer any more "
        f"({redacted(reason)}); finished work is kept, checkpoints of the "
        "training too: start the store again and give the same command again"
    )
