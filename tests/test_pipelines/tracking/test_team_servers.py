"""A team's servers for real: PostgreSQL, S3, ``deploy/tracking-server.sh`` with a login.

Two full runs at once, while the database and the server are killed and started again.
"""

import json
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import boto3
import pytest
from factories import write_images
from mlflow import MlflowClient
from moto.server import ThreadedMotoServer

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.long]

ROOT = Path(__file__).parents[3]
EPOCHS = 6
START_S = 120
RUN_S = 900


def _postgres_bin() -> Path | None:
    """The folder of PostgreSQL's programs."""
    for initdb in sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), reverse=True):
        return initdb.parent
    found = shutil.which("initdb")
    return Path(found).parent if found else None


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@dataclass(slots=True)
class Database:
    """A PostgreSQL server."""

    programs: Path
    folder: Path
    password: str
    port: int = field(default_factory=free_port)

    def _run(self, program: str, *arguments: str) -> None:
        # It refuses to run as root.
        user = "postgres" if os.geteuid() == 0 else None
        subprocess.run(
            [str(self.programs / program), *arguments],
            cwd=self.folder,
            user=user,
            check=True,
            stdout=subprocess.DEVNULL,
        )

    def create(self) -> None:
        password = self.folder / "password"
        password.write_text(self.password)
        if os.geteuid() == 0:
            owner = pwd.getpwnam("postgres")
            for path in (self.folder, password):
                os.chown(path, owner.pw_uid, owner.pw_gid)
        options = ["--username=mlflow", f"--pwfile={password}", "--auth=scram-sha-256"]
        self._run("initdb", "-D", str(self.folder / "data"), "--no-sync", *options)

    def start(self) -> None:
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -c fsync=off -k {self.folder}"
        log = str(self.folder / "log.txt")
        self._run(
            "pg_ctl", "-D", str(self.folder / "data"), "-o", options, "-l", log, "-w", "start"
        )

    def stop(self, mode: str = "immediate") -> None:
        """By default like a crash."""
        self._control("-m", mode, "stop")

    def _control(self, *arguments: str) -> None:
        self._run("pg_ctl", "-D", str(self.folder / "data"), "-w", *arguments)

    def uri(self, driver: str = "") -> str:
        return f"postgresql{driver}://mlflow:{self.password}@127.0.0.1:{self.port}/postgres"


@dataclass(slots=True)
class TrackingServer:
    """``deploy/tracking-server.sh`` with basic authentication."""

    folder: Path
    environment: Mapping[str, str]
    password: str
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        self.folder.mkdir(exist_ok=True)
        configuration = self.folder / "auth.ini"
        configuration.write_text(
            "[mlflow]\n"
            "default_permission = READ\n"
            f"database_uri = sqlite:///{self.folder}/auth.db\n"
            "admin_username = admin\n"
            f"admin_password = {self.password}\n"
            "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
        )
        with (self.folder / "log.txt").open("ab") as log:
            self.process = subprocess.Popen(
                [str(ROOT / "deploy" / "tracking-server.sh"), "--app-name", "basic-auth"],
                cwd=self.folder,
                env={
                    **os.environ,
                    **self.environment,
                    "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
                    "MLFLOW_PORT": str(self.port),
                    "MLFLOW_WORKERS": "2",
                    "MLFLOW_AUTH_CONFIG_PATH": str(configuration),
                    "MLFLOW_FLASK_SERVER_SECRET_KEY": secrets.token_hex(),
                },
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        until = time.monotonic() + START_S
        while True:
            try:
                urlopen(f"{self.url}/health", timeout=5).close()
                return
            except OSError:
                assert self.process.poll() is None, (self.folder / "log.txt").read_text()
                assert time.monotonic() < until
                time.sleep(0.2)

    def kill(self) -> None:
        assert self.process
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


class FullRun:
    """A full run in a process of its own."""

    def __init__(self, workdir: Path, environment: Mapping[str, str], *options: str) -> None:
        self.lines: list[str] = []
        script = str(ROOT / "pipelines" / "full_run.py")
        numbers = ["--epochs", str(EPOCHS), "--log-steps", "1", "--batch-size", "8"]
        self.process = subprocess.Popen(
            [sys.executable, script, "--workdir", str(workdir), *options, *numbers],
            env={**os.environ, "RAY_ADDRESS": "local", **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout
        self.lines.extend(self.process.stdout)

    @property
    def output(self) -> str:
        return "".join(self.lines)

    def wait_for(self, text: str) -> None:
        until = time.monotonic() + RUN_S
        while text not in self.output:
            assert self.process.poll() is None, self.output
            assert time.monotonic() < until, self.output
            time.sleep(0.1)

    def finish(self) -> None:
        assert self.process.wait(RUN_S) == 0, self.output
        self._reader.join()


@pytest.fixture(scope="module")
def programs() -> Path:
    pytest.importorskip("psycopg2")
    pytest.importorskip("flask_wtf", reason="MLflow's basic authentication needs Flask-WTF")
    found = _postgres_bin()
    if found is None:
        pytest.skip("PostgreSQL is not installed (Debian: apt install postgresql)")
    return found


@contextmanager
def bucket(name: str, environment: Mapping[str, str]) -> Iterator[Any]:
    """An S3 server's bucket."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    client = boto3.client(
        "s3",
        endpoint_url=f"http://{host}:{port}",
        region_name="us-east-1",
        aws_access_key_id=environment["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=environment["AWS_SECRET_ACCESS_KEY"],
    )
    client.create_bucket(Bucket=name)
    try:
        yield client
    finally:
        server.stop()


def contents(client: Any, name: str) -> dict[str, bytes]:
    """All objects of a bucket."""
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=name)
    keys = [entry["Key"] for page in pages for entry in page.get("Contents", [])]
    return {key: client.get_object(Bucket=name, Key=key)["Body"].read() for key in keys}


def check_run(client: MlflowClient, output: str, experiment: str) -> None:
    """The runs of a full run are complete, and each point of the curves is there once."""
    found = client.get_experiment_by_name(experiment)
    assert found
    runs = client.search_runs([found.experiment_id])
    assert {run.info.status for run in runs} == {"FINISHED"}
    stages = {run.data.tags["stage"]: run.info.run_id for run in runs}
    assert sorted(stages) == ["evaluate", "full_run", "preprocess", "promote", "train"]
    assert len(runs) == len(stages)
    steps = [point.step for point in client.get_metric_history(stages["train"], "loss")]
    assert steps == list(range(1, len(steps) + 1))
    assert len(client.get_metric_history(stages["train"], "val_loss")) == EPOCHS
    result = json.loads(output.splitlines()[-1])
    assert result["stages"]["train"]["run_id"] == stages["train"]


def test_nothing_is_lost_and_no_secret_is_written(programs: Path, tmp_path: Path) -> None:
    hidden = {name: f"secret{secrets.token_hex(12)}" for name in ("database", "login", "s3")}
    aws = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": hidden["s3"]}
    source = tmp_path / "source"
    write_images(source)
    with ExitStack() as stack:
        s3 = stack.enter_context(bucket("bucket", aws))
        # Its user can't enter the folders of root's tests.
        parent = "/tmp" if os.geteuid() == 0 else None
        folder = stack.enter_context(tempfile.TemporaryDirectory(dir=parent))
        database = Database(programs, Path(folder), hidden["database"])
        database.create()
        database.start()
        stack.callback(database.stop)
        server = TrackingServer(
            tmp_path / "server",
            aws
            | {
                "AWS_DEFAULT_REGION": "us-east-1",
                "MLFLOW_BACKEND_STORE_URI": database.uri("+psycopg2"),
                "MLFLOW_ARTIFACTS_DESTINATION": "s3://bucket/mlflow",
                "MLFLOW_S3_ENDPOINT_URL": s3.meta.endpoint_url,
            },
            hidden["login"],
        )
        server.start()
        stack.callback(lambda: server.kill())
        with_login = server.url.replace("://", f"://admin:{hidden['login']}@")
        login = {"MLFLOW_TRACKING_USERNAME": "admin", "MLFLOW_TRACKING_PASSWORD": hidden["login"]}
        common = ["--source", str(source), "--max-reject-fraction", "0.1"]
        runs = {
            "in the URI": FullRun(
                tmp_path / "first", {}, *common, "--tracking-uri", with_login, "--experiment", "a"
            ),
            "in variables": FullRun(
                tmp_path / "second",
                login | {"MLFLOW_TRACKING_URI": server.url, "MLFLOW_EXPERIMENT_NAME": "b"},
                *common,
            ),
        }
        for run in runs.values():
            stack.callback(run.process.kill)
        for run in runs.values():
            run.wait_for("epoch 2/")
        database.stop()
        time.sleep(5)
        database.start()
        for run in runs.values():
            run.wait_for("epoch 4/")
        server.kill()
        time.sleep(5)
        server.start()
        for run in runs.values():
            run.finish()

        with pytest.MonkeyPatch.context() as patch:
            for name, value in login.items():
                patch.setenv(name, value)
            client = MlflowClient(server.url, server.url)
            for run, experiment in zip(runs.values(), "ab", strict=True):
                check_run(client, run.output, experiment)
            versions = client.search_model_versions("name = 'alexnet'")
            assert len(versions) == 2
        dump = subprocess.run(
            [str(programs / "pg_dump"), "--data-only", database.uri()],
            capture_output=True,
            check=True,
        ).stdout
        written = contents(s3, "bucket") | {"database": dump}
    assert any(name.endswith("model.pt2") for name in written)
    for workdir in ("first", "second"):
        for path in (tmp_path / workdir).rglob("*"):
            if path.is_file():
                written[str(path)] = path.read_bytes()
    for name, run in runs.items():
        written[f"output of the run with the password {name}"] = run.output.encode()
    written["log of the server"] = (tmp_path / "server" / "log.txt").read_bytes()
    for name, content in written.items():
        for secret in hidden.values():
            assert secret.encode() not in content, name
