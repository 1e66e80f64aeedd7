"""The connection to a Ray cluster: the one that runs already, or a new one on this machine."""

import atexit
import contextlib
import logging
import os
import secrets
import threading
from collections.abc import Mapping
from typing import Any

import ray
from ray._private import utils as ray_utils
from ray._private import worker as ray_worker
from ray._private.services import find_bootstrap_address
from ray.exceptions import AuthenticationError

from alexnet.errors import UserError, one_line
from pipelines.clusters.ray_address import ask_cluster, running_cluster, with_token
from pipelines.console.interrupt import restore_handlers, run_in_thread
from pipelines.console.output import printable
from pipelines.console.redact import redacted
from pipelines.console.watchdog import Watchdog

GIB = 2**30

KEEP_FREED_MEMORY = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(2**62),
    "MALLOC_ARENA_MAX": "1",
}
"""Environment variables of glibc for processes that run the network: freed blocks are reused.

Every training step allocates and frees the same few hundred megabytes of activations. By default
glibc maps each large block anew and the kernel clears its pages one by one: 55,000 page faults a
second were measured, a fifth of a step's time. An exported network on a CPU processes 93 crops a
second with the variables, 42 without.

They are read when a process starts. mallopt(3) does not reach the thread in which Ray Train runs
the training, since that has a heap of its own. Other C libraries ignore them.
"""

_CONNECTING = threading.Lock()
"""Held while a thread connects; another thread waits and then finds Ray initialized."""

_STARTED = threading.Event()
"""Set when this process has started a cluster."""


def connect() -> None:
    """Connect to the cluster that RAY_ADDRESS or ``ray start`` names, else start one here.

    A cluster that is started here listens on loopback only and has no dashboard, which saves half
    a gigabyte and some seconds; ``ray start --head`` starts one with a dashboard.

    Raises:
        UserError: the cluster to join does not answer or refuses the connection, or none can be
            started here.
    """
    with _CONNECTING, Watchdog("ray", lambda: "waiting for Ray to start or to answer"):
        if not ray.is_initialized():
            # In a thread, or Ray would replace the handler of SIGTERM. The thread is kept, since
            # the processes of a cluster that is started here end with the thread.
            run_in_thread(_join_or_start, "ray", keep=True)
    restore_handlers()


def started_here() -> bool:
    """Whether this process has started the cluster, which has no other nodes and no autoscaler."""
    return _STARTED.is_set()


def connect_in_background() -> None:
    """Begin to connect, for work that certainly follows: Ray takes seconds to start."""

    def start() -> None:
        # The work connects as well, and meets the same error, in the main thread.
        with contextlib.suppress(Exception):
            connect()

    threading.Thread(target=start, name="start-ray", daemon=True).start()


def _join_or_start() -> None:
    _STARTED.clear()
    address = running_cluster(find_bootstrap_address(None))
    # Ray keeps the command line in its table of jobs, and shows it. It must be UTF-8.
    command_line = printable(redacted(ray_utils.get_entrypoint_name()))
    ray_utils.get_entrypoint_name = lambda: command_line
    # The workers' lines for the user come through ``console.worker_log``.
    quiet = {"logging_level": logging.ERROR, "log_to_driver": False}
    if address:
        _join(address, quiet)
    else:
        _start(quiet)
        _STARTED.set()
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    # Ray's own function for the exit first waits half a second for lines of the workers.
    atexit.register(ray.shutdown)


def _join(address: str, quiet: Mapping[str, Any]) -> None:
    if os.environ.get("RAY_ADDRESS"):
        otherwise = "unset RAY_ADDRESS"
    else:
        otherwise = "`export RAY_ADDRESS=local` to start another cluster here"
    try:
        ask_cluster(address)
        ray.init(address=address, **quiet)
    except RuntimeError as error:
        if "Version mismatch" not in str(error):
            raise
        raise UserError(
            f"the Ray cluster at {address} can't be joined ({one_line(error)}); install the same "
            f"versions on all machines, stop that cluster with `ray stop`, or {otherwise}"
        ) from error
    except (ConnectionError, AuthenticationError) as error:
        remedy = (
            "RAY_AUTH_TOKEN or ~/.ray/auth_token must be the token with which it was started"
            if with_token()
            else "if it requires a token, which newer Ray versions do where ~/.ray/auth_token "
            "exists, `export RAY_AUTH_MODE=token`"
        )
        # Its text as a string adds advice for other programs.
        reason = error.message if isinstance(error, AuthenticationError) else one_line(error)
        raise UserError(
            f"the Ray cluster at {address} can't be joined ({' '.join(reason.split())}); {remedy}, "
            f"or {otherwise}"
        ) from error


def _start(quiet: Mapping[str, Any]) -> None:
    # Otherwise Ray writes a token to the home directory; then a later `ray start --head` requires
    # it and a plain `ray job submit` is refused.
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    # This machine is not preemptible, and watching for preemption takes one more process.
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    try:
        ray.init(
            address="local",
            include_dashboard=False,
            object_store_memory=GIB,
            _node_ip_address="127.0.0.1",
            **quiet,
        )
    except OSError as error:
        if "AF_UNIX path length" not in str(error):
            raise
        raise UserError(
            f"Ray can't start: the paths of its sockets are too long ({one_line(error)}); "
            "`export RAY_TMPDIR=/tmp`, or another folder with a short path"
        ) from error
    # The autoscaler has nothing to start here, and Ray would wait a second for its end. Only
    # `ray start` has an option against it; another version of Ray may not have this name.
    with contextlib.suppress(AttributeError):
        ray_worker._global_node.kill_monitor(check_alive=False)
