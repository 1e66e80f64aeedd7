"""Runs of a command on a cluster of this machine, and ways to kill parts of them."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from ray.cluster_utils import Cluster
from ray_clusters import cluster_of

WAIT_SECONDS = 120.0
SMALL_NODE: dict[str, Any] = {"num_cpus": 1, "object_store_memory": 100 * 2**20}


@contextmanager
def three_nodes() -> Iterator[Cluster]:
    """A cluster of one CPU a node on this machine."""
    with cluster_of(SMALL_NODE, SMALL_NODE, SMALL_NODE) as found:
        yield found


@contextmanager
def small_file_system(folder: Path, megabytes: int) -> Iterator[Path]:
    """Little room in a folder; only root can make one."""
    mounted = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(mounted, check=False, capture_output=True).returncode:
        pytest.skip("file systems can't be mounted here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


class Attack:
    """A command, started as often as it takes."""

    def __init__(
        self,
        nodes: Cluster,
        command: list[str],
        *,
        worker: str,
        progress: Callable[[], int],
    ) -> None:
        """Prepare.

        Args:
            nodes: the cluster the command joins, of small nodes.
            command: program and arguments.
            worker: what the titles of the processes that do the work begin with.
            progress: a number that grows while the work goes on.
        """
        self.nodes, self.command = nodes, command
        self.worker, self.progress = worker, progress
        self.process: subprocess.Popen[str] | None = None
        self.output = self.errors = ""

    def start(self) -> None:
        self.process = subprocess.Popen(
            self.command,
            env=os.environ | {"RAY_ADDRESS": self.nodes.address},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def is_over(self) -> bool:
        return self.process is None or self.process.poll() is not None

    def wait_for_progress(self) -> bool:
        """Until some more is done; False when the run ends first."""
        before = self.progress()
        until = time.monotonic() + WAIT_SECONDS
        while self.progress() <= before:
            if self.is_over():
                return False
            assert time.monotonic() < until, "nothing goes on any more"
            time.sleep(0.02)
        return True

    def end(self) -> dict[str, Any] | None:
        """Wait for the end; the figures, or None if the run failed."""
        assert self.process is not None
        self.output, self.errors = self.process.communicate(timeout=WAIT_SECONDS)
        status = self.process.returncode
        self.process = None
        if status:
            return None
        figures: dict[str, Any] = json.loads(self.output.splitlines()[-1])
        return figures

    def kill_driver(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.communicate()
        self.process = None

    def kill_worker(self) -> None:
        for node in self.nodes.list_all_nodes():
            raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
            for process in raylet.children():
                if " ".join(process.cmdline()).startswith(self.worker):
                    process.send_signal(signal.SIGKILL)
                    return

    def kill_node(self) -> None:
        self.lose_node()
        self.nodes.add_node(**SMALL_NODE)

    def lose_node(self) -> None:
        node = self.nodes.list_all_nodes()[-1]
        os.kill(node.all_processes["raylet"][0].process.pid, signal.SIGKILL)
        self.nodes.remove_node(node, allow_graceful=False)
