"""Commands on a Ray cluster of this computer, whose processes and nodes can be killed."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from ray.cluster_utils import Cluster
from ray_clusters import cluster_of

TIMEOUT_S = 300.0
SMALL_NODE: dict[str, Any] = {"num_cpus": 1, "object_store_memory": 100 * 2**20}


@contextmanager
def three_nodes() -> Iterator[Cluster]:
    """A cluster of three nodes with one CPU each on this computer."""
    with cluster_of(SMALL_NODE, SMALL_NODE, SMALL_NODE) as cluster:
        yield cluster


@contextmanager
def small_file_system(folder: Path, megabytes: int) -> Iterator[Path]:
    """A folder with little space; without root's permission to mount one, the test is skipped."""
    mount = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("file systems can't be mounted here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


class ChaosRun:
    """A command whose processes can be killed, and that can be started again."""

    def __init__(
        self,
        cluster: Cluster,
        command: list[str],
        *,
        worker: str,
        progress: Callable[[], int],
    ) -> None:
        """Prepare; nothing is started.

        Args:
            cluster: that the command joins, of small nodes.
            command: program and arguments.
            worker: how the titles of the worker processes begin.
            progress: a number that grows while the command works.
        """
        self.cluster, self.command = cluster, command
        self.worker, self.progress = worker, progress
        self.process: subprocess.Popen[str] | None = None
        self.output = self.errors = ""

    def start(self) -> None:
        self.process = subprocess.Popen(
            self.command,
            env=os.environ | {"RAY_ADDRESS": self.cluster.address},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def has_ended(self) -> bool:
        return self.process is None or self.process.poll() is not None

    def wait_for_progress(self) -> bool:
        """Wait until the progress has grown; False if the command ends first."""
        before = self.progress()
        end = time.monotonic() + TIMEOUT_S
        while self.progress() <= before:
            if self.has_ended():
                return False
            assert time.monotonic() < end, "no progress"
            time.sleep(0.02)
        return True

    def result(self) -> dict[str, Any] | None:
        """Wait for the end; the command's JSON line, or None if it failed."""
        assert self.process is not None
        self.output, self.errors = self.process.communicate(timeout=TIMEOUT_S)
        status = self.process.returncode
        self.process = None
        if status:
            return None
        value: dict[str, Any] = json.loads(self.output.splitlines()[-1])
        return value

    def kill_driver(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.communicate()
        self.process = None

    def kill_driver_softly(self) -> None:
        """With SIGTERM, after which it saves a checkpoint."""
        assert self.process is not None
        self.process.terminate()
        self.process.communicate(timeout=TIMEOUT_S)
        self.process = None

    def kill_worker(self) -> None:
        for node in self.cluster.list_all_nodes():
            raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
            for process in raylet.children():
                with suppress(psutil.Error):  # It has just ended by itself.
                    if " ".join(process.cmdline()).startswith(self.worker):
                        process.send_signal(signal.SIGKILL)
                        return

    def kill_node(self) -> None:
        """Kill the last node and add another one."""
        self.remove_node()
        self.cluster.add_node(**SMALL_NODE)

    def remove_node(self) -> None:
        """Kill the last node."""
        node = self.cluster.list_all_nodes()[-1]
        os.kill(node.all_processes["raylet"][0].process.pid, signal.SIGKILL)
        self.cluster.remove_node(node, allow_graceful=False)
