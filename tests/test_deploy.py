"""The deployment files contain what the project needs, as far as tests without a cloud show."""

import copy
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

ROOT = Path(__file__).resolve().parent.parent
SERVER = ROOT / "deploy" / "tracking-server.sh"


@pytest.fixture
def cluster() -> dict[str, Any]:
    """The cluster as Ray's launcher reads it, with Ray's default values."""
    config: dict[str, Any] = prepare_config(yaml.safe_load((ROOT / "ray_cluster.yaml").read_text()))
    return config


@pytest.fixture
def manifests() -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((ROOT / "deploy" / "kuberay.yaml").read_text()))


@pytest.fixture
def job(manifests: list[dict[str, Any]]) -> dict[str, Any]:
    (job,) = (manifest for manifest in manifests if manifest["kind"] == "RayJob")
    spec: dict[str, Any] = job["spec"]
    return spec


def pods(job: dict[str, Any]) -> list[dict[str, Any]]:
    cluster = job["rayClusterSpec"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    return [group["template"]["spec"] for group in groups]


class TestRayCluster:
    def test_ray_accepts_it(self, cluster: dict[str, Any]) -> None:
        validate_config(cluster)

    def test_the_validator_rejects_a_mistake(self, cluster: dict[str, Any]) -> None:
        wrong = copy.deepcopy(cluster)
        wrong["available_node_types"]["gpu"]["gpus"] = 4
        with pytest.raises(Exception, match="gpus"):
            validate_config(wrong)

    def test_gpus_come_in_pairs_and_only_for_workers(self, cluster: dict[str, Any]) -> None:
        kinds = cluster["available_node_types"]
        gpus = {name: kind["resources"].get("GPU", 0) for name, kind in kinds.items()}
        assert gpus.pop(cluster["head_node_type"]) == 0
        counts = [count for count in gpus.values() if count]
        assert counts
        assert all(count >= 2 and count % 2 == 0 for count in counts)

    def test_only_gpu_nodes_are_permanent_and_all_are_within_the_limit(
        self, cluster: dict[str, Any]
    ) -> None:
        workers = [
            kind
            for name, kind in cluster["available_node_types"].items()
            if name != cluster["head_node_type"]
        ]
        for kind in workers:
            assert (kind["min_workers"] > 0) == ("GPU" in kind["resources"])
        assert sum(kind["max_workers"] for kind in workers) <= cluster["max_workers"]

    def test_every_node_has_the_code_and_the_token(self, cluster: dict[str, Any]) -> None:
        local = [path for path in cluster["file_mounts"].values() if not path.startswith("~")]
        assert {"alexnet", "pipelines", "pyproject.toml"} <= set(local)
        assert [path for path in local if not (ROOT / path).exists()] == []
        assert cluster["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
        assert "RAY_AUTH_MODE=token" in " ".join(cluster["initialization_commands"])
        assert any("-e ~/alexnet" in command for command in cluster["setup_commands"])

    def test_dashboard_on_loopback_and_jobs_in_the_project(self, cluster: dict[str, Any]) -> None:
        start = shlex.split(cluster["head_start_ray_commands"][-1])
        assert "--dashboard-host=127.0.0.1" in start
        for commands in (cluster["head_start_ray_commands"], cluster["worker_start_ray_commands"]):
            assert commands[-1].startswith("cd ~/alexnet;")


class TestKubeRay:
    def test_gpu_pods_hold_one_training_worker(self, job: dict[str, Any]) -> None:
        gpus = {}
        for group in job["rayClusterSpec"]["workerGroupSpecs"]:
            (container,) = group["template"]["spec"]["containers"]
            limits = container["resources"]["limits"]
            gpus[group["groupName"]] = (limits.get("nvidia.com/gpu", 0), container["image"])
            assert container["resources"]["requests"] == limits
            assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
        assert gpus == {"gpu": (2, "alexnet:gpu"), "cpu": (0, "alexnet:cpu")}

    def test_enough_pods_for_the_requested_workers(self, job: dict[str, Any]) -> None:
        words = shlex.split(job["entrypoint"])
        requested = int(words[words.index("--num-workers") + 1])
        (gpu,) = (
            group
            for group in job["rayClusterSpec"]["workerGroupSpecs"]
            if group["groupName"] == "gpu"
        )
        assert requested <= gpu["maxReplicas"]

    def test_entrypoint_is_a_pipeline(self, job: dict[str, Any]) -> None:
        words = shlex.split(job["entrypoint"])
        assert words[:2] == ["python", "pipelines/full_run.py"]
        assert (ROOT / words[1]).is_file()

    def test_nothing_is_exposed_or_privileged(
        self, job: dict[str, Any], manifests: list[dict[str, Any]]
    ) -> None:
        assert {manifest["kind"] for manifest in manifests} == {"ServiceAccount", "RayJob"}
        assert job["rayClusterSpec"]["headGroupSpec"]["serviceType"] == "ClusterIP"
        assert job["rayClusterSpec"]["authOptions"] == {"mode": "token"}
        for pod in pods(job):
            assert pod["serviceAccountName"] == "alexnet"
            assert pod["securityContext"]["runAsNonRoot"] is True
            assert "hostNetwork" not in pod
            for container in pod["containers"]:
                assert container["securityContext"]["allowPrivilegeEscalation"] is False
                assert container["image"].startswith("alexnet:")


class TestDockerfile:
    INSTRUCTIONS = re.findall(
        r"^([A-Z]+) (.*)$", (ROOT / "deploy" / "Dockerfile").read_text(), flags=re.MULTILINE
    )

    def test_small_base_and_no_root(self) -> None:
        assert self.INSTRUCTIONS[0] == ("FROM", "python:3.12-slim")
        users = [value for name, value in self.INSTRUCTIONS if name == "USER"]
        assert users
        assert int(users[-1]) > 0

    def test_what_is_copied_exists(self) -> None:
        sources = [
            source
            for name, value in self.INSTRUCTIONS
            if name == "COPY"
            for source in value.split()[:-1]
        ]
        assert {"alexnet", "pipelines", "pyproject.toml"} <= set(sources)
        assert [source for source in sources if not (ROOT / source).exists()] == []


@pytest.mark.slow
class TestTrackingServer:
    def test_syntax(self) -> None:
        subprocess.run(["bash", "-n", SERVER], check=True)
        assert os.access(SERVER, os.X_OK)

    @pytest.fixture
    def server(self, tmp_path: Path) -> Iterator[str]:
        """The address of the running script, on a free port."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        environment = {
            name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")
        }
        environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
        environment["MLFLOW_PORT"] = str(port)
        with (tmp_path / "log").open("w") as log:
            process = subprocess.Popen(
                [SERVER],
                cwd=tmp_path,
                env=environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
            try:
                yield f"http://127.0.0.1:{port}"
            finally:
                os.killpg(process.pid, signal.SIGTERM)
                try:
                    process.wait(10)
                except subprocess.TimeoutExpired:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()

    def test_it_serves_locally_and_refuses_other_names(self, server: str, tmp_path: Path) -> None:
        deadline = time.monotonic() + 60
        while True:
            try:
                with urllib.request.urlopen(f"{server}/health", timeout=5) as answer:
                    assert answer.read() == b"OK"
                break
            except OSError:
                assert time.monotonic() < deadline, (tmp_path / "log").read_text()
                time.sleep(0.2)
        search = f"{server}/api/2.0/mlflow/experiments/search?max_results=1"
        with urllib.request.urlopen(search, timeout=10) as answer:
            assert b'"Default"' in answer.read()
        other_name = urllib.request.Request(search, headers={"Host": "elsewhere.example"})
        with pytest.raises(urllib.error.HTTPError) as refusal:
            urllib.request.urlopen(other_name, timeout=10)
        assert refusal.value.code == 403
        assert (tmp_path / "work" / "tracking" / "mlflow.db").is_file()
