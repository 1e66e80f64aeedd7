"""Stores of any name and place, shared stores, databases of other versions, MLflow's variables."""

import os
import shlex
import sqlite3
import subprocess
import sys
from pathlib import Path

import mlflow.store.db_migrations
import pytest
from alembic.script import ScriptDirectory

from alexnet.errors import UserError
from pipelines.console.cli import read_settings
from pipelines.settings import Settings
from pipelines.tracking.location import locate_store
from pipelines.tracking.run import Run, open_run
from pipelines.tracking.store import Store, connect

ROOT = Path(__file__).parents[3]
HOSTILE = ["50%", "a%20b", "a?b=c#d", "a'b\" $x\\", "a\nb", "%(here)s", "猫🚀:@", "a;b&c|d<e>`"]


def log_artifact(store: Store) -> str:
    """Log a file in a new run, and return its content as MLflow finds it."""
    run_id = open_run(store, "stage", resume=None, parent=None)
    Run(store, run_id).log_json({"a": 1}, "folder/a.json")
    return Path(store.client.download_artifacts(run_id, "folder/a.json")).read_text()


@pytest.mark.parametrize("name", HOSTILE)
def test_a_workdir_of_any_name_holds_its_store(mlflow_workdir: str, name: str) -> None:
    workdir = Path(mlflow_workdir) / "all" / name
    workdir.mkdir(parents=True)
    (Path(mlflow_workdir) / "mlflow.db").rename(workdir / "mlflow.db")
    for _ in range(2):
        store = connect(Settings(workdir=str(workdir), experiment=name))
        assert '"a": 1' in log_artifact(store)
    assert len(list((workdir / "mlartifacts").rglob("a.json"))) == 2
    assert os.listdir(workdir.parent) == [name], "no folder is named by an escaped URI"
    *command, uri = shlex.split(store.ui_command())
    assert (command, uri) == (["mlflow", "ui", "--backend-store-uri"], store.uri)
    assert store.client.get_experiment(store.experiment_id).name == name


def test_artifacts_of_a_database_lie_beside_it(
    mlflow_workdir: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared, here = tmp_path / "shared", tmp_path / "here"
    for folder in (shared, here):
        folder.mkdir()
    (tmp_path / "mlflow.db").rename(shared / "x.db")
    monkeypatch.chdir(here)
    store = connect(Settings(workdir=str(tmp_path / "w"), tracking_uri="sqlite:///../shared/x.db"))
    assert store.uri == f"sqlite:///{shared}/x.db", "Ray's workers run in other folders"
    log_artifact(store)
    assert list((shared / "x-artifacts").rglob("a.json"))
    assert os.listdir(here) == []


def test_artifacts_of_a_remote_database_lie_in_the_workdir() -> None:
    settings = Settings(workdir="/data/work", tracking_uri="postgresql://user@host/mlflow")
    assert locate_store(settings).artifacts == "/data/work/mlartifacts"
    settings = Settings(workdir="/data/work", tracking_uri="http://host:5000")
    assert locate_store(settings).artifacts is None, "the server decides"


@pytest.mark.slow
def test_one_new_store_for_many_commands_at_once(tmp_path: Path) -> None:
    """Each with a workdir of its own."""
    code = (
        "import sys\n"
        "from pipelines.settings import Settings\n"
        "from pipelines.tracking.store import connect\n"
        "print(connect(Settings(workdir=sys.argv[1], tracking_uri=sys.argv[2])).experiment_id)"
    )
    uri = f"sqlite:///{tmp_path}/shared/x.db"
    commands = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path / str(number)), uri],
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(3)
    ]
    ended = [(command.communicate(), command.returncode) for command in commands]
    assert [(out.split()[-1:], err, status) for (out, err), status in ended] == [(["1"], "", 0)] * 3
    assert sorted(os.listdir(tmp_path / "shared")) == ["locks", "x.db"]


def connect_to_version(folder: str, version: str) -> str:
    """The error for a database whose tables have a version."""
    path = f"{folder}/mlflow.db"
    before = Path(path).read_bytes()
    database = sqlite3.connect(path)
    database.execute("UPDATE alembic_version SET version_num = ?", [version])
    database.execute("DROP TABLE IF EXISTS jobs")
    database.commit()
    database.close()
    changed = Path(path).read_bytes()
    assert changed != before
    with pytest.raises(UserError) as caught:
        connect(Settings(workdir=folder, tracking_uri=f"sqlite:///{path}"))
    assert Path(path).read_bytes() == changed, "only the user upgrades a database"
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"tracking store sqlite:///{path}: created by a")
    return message


def test_a_database_of_an_older_mlflow(mlflow_workdir: str) -> None:
    versions = ScriptDirectory(str(Path(mlflow.store.db_migrations.__file__).parent))
    older = list(versions.walk_revisions())[3].revision
    message = connect_to_version(mlflow_workdir, older)
    assert f"`mlflow db upgrade sqlite:///{mlflow_workdir}/mlflow.db`" in message


def test_a_database_of_a_newer_mlflow(mlflow_workdir: str) -> None:
    message = connect_to_version(mlflow_workdir, "feedfeedfeed")
    assert "install the newer one" in message
    assert "upgrade" not in message


@pytest.mark.parametrize(
    "uri", ["sqlite:////proc/none/x.db", "sqlite:////dev/null/x.db", "postgresql://localhost:1/x"]
)
def test_a_database_that_can_not_be_opened(tmp_path: Path, uri: str) -> None:
    with pytest.raises(UserError, match=r"^tracking store .*; check --tracking-uri$") as caught:
        connect(Settings(workdir=str(tmp_path), tracking_uri=uri))
    assert "\n" not in str(caught.value)


def test_mlflows_variables_name_store_and_experiment(
    mlflow_workdir: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    uri = f"sqlite:///{mlflow_workdir}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "mine")
    arguments = ["--workdir", f"{mlflow_workdir}/w"]
    settings = read_settings(Settings, arguments, "text")
    assert (settings.tracking_uri, settings.experiment) == (uri, "mine")
    store = connect(settings)
    assert store.uri == uri
    line = f"tracking: store {uri} (MLFLOW_TRACKING_URI), experiment mine (MLFLOW_EXPERIMENT_NAME)"
    assert capsys.readouterr().out.splitlines() == [line]
    assert os.environ["MLFLOW_TRACKING_URI"] == uri
    given = read_settings(Settings, [*arguments, "--experiment", "other"], "text")
    assert (given.experiment, given.origins["experiment"]) == ("other", "--experiment")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://host:99999")
    with pytest.raises(UserError, match=r"^MLFLOW_TRACKING_URI: a server is a host and a port"):
        read_settings(Settings, arguments, "text")


def test_a_command_leaves_mlflows_variables_as_they_are(mlflow_workdir: str) -> None:
    connect(Settings(workdir=mlflow_workdir))
    assert not {"MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI"} & os.environ.keys()
