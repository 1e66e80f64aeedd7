"""Secrets planted in URIs are nowhere in what a command leaves, nor in what Ray shows."""

import json
import logging
import pickle
import shlex
import sys
import warnings
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from typing import Any
from urllib.parse import unquote

import pytest
import ray
from ray._private import utils as ray_utils

from alexnet.recipes import SOURCE145
from pipelines import batch_inference, cluster, full_run, preprocess
from pipelines.clusters.allocation import WorkerResources
from pipelines.console.cli import run_script
from pipelines.console.log import stage_logger
from pipelines.console.redact import SecretUri, redacted, remember_secrets
from pipelines.results.records import StageKey
from pipelines.results.stage_results import PromoteResult
from pipelines.settings import PromoteSettings, Settings, TrainSettings
from pipelines.stages import run_stage
from pipelines.tracking.run import Run
from pipelines.tracking.store import Store, connect
from pipelines.training import job
from pipelines.training.state import LoopConfig

SECRET = "hunter2%2Ftop%40cat"
FORMS = (SECRET, unquote(SECRET), "hunter2")
"""As in the URI, decoded, and a part of it."""

SERVER = f"http://user:{SECRET}@127.0.0.1:9/x"


def exit_status(main: Any, *arguments: str) -> int:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", list(arguments))
        with pytest.raises(SystemExit) as caught:
            main()
    return int(str(caught.value.code))


def assert_no_secret(text: str) -> None:
    for form in FORMS:
        assert form not in text


def assert_no_secret_in_files(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            assert_no_secret(path.read_bytes().decode("latin-1"))
            assert_no_secret(str(path))


PLANTED = [
    f"--workdir s3://KEY:{SECRET}@bucket/x",
    f"--workdir 's3://KEY:{unquote(SECRET)}@bucket/x'",
    f"--workdir 's3://KEY:{unquote(SECRET)} b@bucket/x'",
    f"--workdir s3://{SECRET}@bucket/x",
    f"--workdir 's3://bucket/x?X-Amz-Credential=a&X-Amz-Signature={SECRET}'",
    f"--workdir https://account.example/x?sig={SECRET}",
    f"--workdir {SERVER}",
    f"--tracking-uri {SERVER}",
    f"--tracking-uri {SERVER}?token={SECRET}",
    f"--tracking-uri http://user:{SECRET}@127.0.0.1:99999",
    f"--tracking-uri http://user:{unquote(SECRET)}@127.0.0.1",
    f"--tracking-uri other://user:{SECRET}@127.0.0.1/x",
    f"--tracking-uri other://127.0.0.1/x?password={SECRET}",
    f"--tracking-uri 'other://127.0.0.1/x?odbc_connect=UID%3Da%3BPWD%3D{SECRET}%3B'",
    f"--tracking-uri other://127.0.0.1/x?sslmode=on&sslpassword={SECRET}",
    f"--tracking-uri mssql+nothing://user:{SECRET}@127.0.0.1/x",
    f"--tracking-uri postgresql://user:{SECRET}@127.0.0.1:port/x",
    f"--tracking-uri AccountName=a;AccountKey={SECRET}",
    f"--experiment http://user:{SECRET}@host/ --epochs 0",
    f"--epochs http://user:{SECRET}@host/",
    f"http://user:{SECRET}@host/",
]


@pytest.mark.parametrize("options", PLANTED)
def test_a_refused_uri_is_reported_without_its_secret(
    options: str,
    raw_images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cluster, "connect_in_background", lambda: None)
    arguments = ["--source", str(raw_images), *shlex.split(options)]
    assert exit_status(full_run.main, "full_run.py", *arguments) == 2
    out, err = capfd.readouterr()
    assert len(err.splitlines()) == 1
    assert err.startswith("full_run.py: ")
    assert_no_secret(out + err)
    assert_no_secret_in_files(tmp_path)


@pytest.mark.parametrize(
    ("main", "options"),
    [
        (preprocess.main, f"--source s3://KEY:{SECRET}@bucket/x"),
        (preprocess.main, f"--source other://bucket/x?token={SECRET}"),
        (batch_inference.main, f"--output o --images s3://KEY:{SECRET}@bucket/x"),
        (batch_inference.main, f"--images i --output s3://{SECRET}@bucket/x"),
    ],
)
def test_other_commands_refuse_them_too(
    main: Any,
    options: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert exit_status(main, "x.py", *shlex.split(options)) == 2
    out, err = capfd.readouterr()
    assert len(err.splitlines()) == 1
    assert_no_secret(out + err)
    assert list(tmp_path.iterdir()) == []


def test_a_config_file_is_quoted_without_its_secrets(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "settings.yaml"
    for text in (f"tracking_uri: {SERVER}\n [", f"tracking_uri: [{SERVER}]", f"tokn: {SERVER}"):
        config.write_text(text)
        assert exit_status(full_run.main, "full_run.py", "--config", str(config)) == 2
        assert_no_secret("".join(capfd.readouterr()))


@pytest.mark.parametrize("fails", [False, True])
def test_a_run_leaves_no_secret(
    fails: bool, mlflow_workdir: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    uri = f"sqlite:///{mlflow_workdir}/mlflow.db?password={SECRET}"

    def work(settings: PromoteSettings) -> Any:
        def log_everything(run: Run) -> PromoteResult:
            print(f"a library prints {uri}")
            print(f"and {unquote(SECRET)}", file=sys.stderr)
            warnings.warn(f"a library warns of {uri}", stacklevel=1)
            stage_logger("promote").info("using %s", uri)
            logging.getLogger("mlflow").error("mlflow uses %s", uri)
            run.log_params({"uri": uri, "plain": unquote(SECRET)})
            run.set_tags({"uri": uri})
            run.set_description(f"[runs]({uri})")
            run.log_dataset(uri, "0" * 32, uri, "training", "rows")
            if fails:
                raise RuntimeError(f"{'x' * 470} can't use {uri}")
            return PromoteResult(
                registered_model="a",
                version="1",
                champion=True,
                reason="best",
                model="models:/a/1",
                champion_version="1",
            )

        store = connect(settings)
        return run_stage(
            settings,
            store,
            StageKey(stage="promote", settings={}, inputs={}, code=""),
            PromoteResult,
            parent=None,
            usable=lambda _: True,
            work=log_everything,
        )

    options = ["--workdir", mlflow_workdir, "--tracking-uri", uri]
    status = exit_status(lambda: run_script(PromoteSettings, work, "text"), "promote.py", *options)
    assert status == (1 if fails else 0)
    out, err = capfd.readouterr()
    assert "a library prints sqlite:///" in out
    assert ("Traceback" in err) == fails
    assert_no_secret(out + err)
    assert len(list((tmp_path / "logs").iterdir())) == 1
    assert_no_secret_in_files(tmp_path)
    if not fails:
        assert json.loads(out.splitlines()[-1])["version"] == "1"


class _Echo(BaseHTTPRequestHandler):
    """A server whose errors repeat the request's address and the user's password."""

    def do_GET(self) -> None:
        text = f"GET {SERVER}{self.path} denied for password={unquote(SECRET)}".encode()
        self.send_response(403)
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, format: str, *arguments: Any) -> None:
        pass


def test_the_error_of_a_server_is_shown_without_secrets(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def work(settings: Settings) -> Any:
        return connect(settings)

    with HTTPServer(("127.0.0.1", 0), _Echo) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        uri = f"http://user:{SECRET}@127.0.0.1:{server.server_port}"
        options = ["--workdir", str(tmp_path), "--tracking-uri", uri]
        status = exit_status(lambda: run_script(Settings, work, "text"), "promote.py", *options)
        server.shutdown()
    out, err = capfd.readouterr()
    assert status == 2
    assert "denied for" in err
    assert_no_secret(out + err)
    assert_no_secret_in_files(tmp_path)


def loop_config(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Mapping[str, Any]:
    """What the training job gives to Ray Train."""
    captured: list[Mapping[str, Any]] = []

    class Trainer:
        def __init__(self, *_: Any, train_loop_config: Mapping[str, Any], **__: Any) -> None:
            captured.append(train_loop_config)

        def fit(self) -> Any:
            return SimpleNamespace(best_checkpoints=[], checkpoint=SimpleNamespace(path="x"))

    class Lines:
        def __enter__(self) -> str:
            return "an actor"

        def __exit__(self, *_: object) -> None: ...

    monkeypatch.setattr(job, "TorchTrainer", Trainer)
    monkeypatch.setattr(job, "worker_log", lambda *_: Lines())
    monkeypatch.setattr(job, "list_checkpoints", lambda _: ["step_000000001"])
    monkeypatch.setattr(cluster, "connect", lambda: None)
    monkeypatch.setattr(job, "training_resources", lambda *_: WorkerResources(1, 0, 1))
    name = "x"
    (tmp_path / "training" / name).mkdir(parents=True)
    job.train_to_the_end(
        TrainSettings(workdir=str(tmp_path), tracking_uri=SERVER),
        SOURCE145,
        shards="shards",
        tracking_uri=SERVER,
        run_id="run",
        name=name,
    )
    return captured[0]


def test_ray_trains_state_has_no_secret_and_the_workers_have_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    schema = pytest.importorskip("ray.train.v2._internal.state.schema")
    config = loop_config(monkeypatch, tmp_path)
    shown = schema._to_json_serializable_value(config)
    assert "127.0.0.1:9" in json.dumps(shown)
    assert_no_secret(json.dumps(shown) + repr(config))
    loop = pickle.loads(pickle.dumps(config))["loop"]
    assert isinstance(loop, LoopConfig)
    assert loop.tracking_uri.reveal() == SERVER


def test_ray_datas_state_has_no_secret_and_the_actors_have_it() -> None:
    exporter = pytest.importorskip("ray.data._internal.metadata_exporter")
    store = Store(SecretUri(SERVER), "1")
    shown = exporter.sanitize_for_struct({"fn_constructor_args": (store, ["models:/a/1"])})
    assert "127.0.0.1:9" in json.dumps(shown)
    assert_no_secret(json.dumps(shown) + repr(store))
    assert pickle.loads(pickle.dumps(store)).uri == SERVER


def test_rays_table_of_jobs_has_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    entrypoints: list[str] = []
    monkeypatch.setattr(
        ray_utils, "get_entrypoint_name", lambda: f"python train.py --tracking-uri {SERVER} --force"
    )
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(
        ray, "init", lambda **_: entrypoints.append(ray_utils.get_entrypoint_name())
    )
    monkeypatch.setattr(cluster, "find_bootstrap_address", lambda _: None)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    cluster.connect()
    assert entrypoints == ["python train.py --tracking-uri http://***@127.0.0.1:9/x --force"]


def test_a_short_secret_is_not_removed_from_words() -> None:
    remember_secrets("http://mlflow:mlflow@host")
    assert redacted("mlflow ui") == "mlflow ui"
