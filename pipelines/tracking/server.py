"""The tracking server from outside: is anybody there, how long to wait, what may be shown."""

import logging
import os
import socket
import time
from urllib.parse import urlsplit, urlunsplit

from alexnet.errors import UserError
from pipelines.console.progress import duration

SERVER_WAIT_S = 300
"""Seconds to wait for a server that was there when the command began."""
EVERY = 2.0
"""Seconds between two looks at it."""


LOGGERS = ("mlflow", "alembic", "mlflow.store", "mlflow.models", "urllib3")
"""Of MLflow's client."""


def configure_loggers() -> None:
    """Keep the client's warnings from the terminal; what matters comes in lines of our own."""
    for name in LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)


def set_short_timeouts() -> None:
    """Let this process's requests fail within seconds, where MLflow tries for minutes.

    What the environment says already stays.
    """
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")


def connection_error(uri: str) -> str | None:
    """Why nobody answers at an address, within seconds; None if somebody does.

    Of stores without a server nothing is known; they count as there.
    """
    parts = urlsplit(uri)
    if parts.scheme not in ("http", "https"):
        return None
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        socket.create_connection((parts.hostname or "", port), timeout=5).close()
    except OSError as error:
        return str(error)
    return None


def check_reachable(uri: str | None) -> None:
    """Find out whether a server listens; MLflow itself would try for minutes.

    Raises:
        UserError: nobody listens at ``--tracking-uri``.
    """
    if uri and (reason := connection_error(uri)):
        raise UserError(
            f"tracking server {redacted(uri)} does not answer ({reason}); start it or correct "
            "--tracking-uri"
        )


def wait_for(uri: str) -> None:
    """Wait for a server that has gone away, and say so in a line.

    Raises:
        UserError: it does not come back.
    """
    reason = connection_error(uri)
    if not reason:
        return
    print(
        f"tracking server {redacted(uri)} does not answer ({reason}); waiting for it, "
        f"{duration(SERVER_WAIT_S)} at most",
        flush=True,
    )
    begun = time.monotonic()
    while reason := connection_error(uri):
        if time.monotonic() - begun > SERVER_WAIT_S:
            raise unavailable_error(uri, reason)
        time.sleep(EVERY)


def unavailable_error(uri: str, reason: str) -> UserError:
    """What to tell the user when a server went away in the middle of the work."""
    return UserError(
        f"tracking store {redacted(uri)} does not answer any more "
        f"({reason.replace(uri, redacted(uri))}); what is finished is kept, the checkpoint of a "
        "training too: bring the store back and give the same command again"
    )


def redacted(uri: str) -> str:
    """A URI without its user name and password."""
    parts = urlsplit(uri)
    if "@" not in parts.netloc:
        return uri
    return urlunsplit(parts._replace(netloc="***@" + parts.netloc.rpartition("@")[2]))
