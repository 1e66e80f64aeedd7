"""A killed training whose files were moved and damaged resumes from what is whole."""

import hashlib
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from ray.cluster_utils import Cluster
from ray_clusters import cluster_of

from pipelines import preprocess, train
from pipelines.settings import PreprocessSettings, TrainSettings

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.long]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with cluster_of({"num_cpus": 2, "object_store_memory": 200 * 2**20}) as nodes:
        yield nodes


@pytest.fixture
def settings(cluster: Cluster, raw_images: Path, mlflow_workdir: str) -> TrainSettings:
    """Of a training of two epochs of three updates, in a workdir with shards."""
    values = {"workdir": mlflow_workdir, "source": str(raw_images), "max_reject_fraction": 0.1}
    preprocess.run(PreprocessSettings.model_validate(values))
    return TrainSettings(
        workdir=mlflow_workdir,
        epochs=2,
        batch_size=16,
        learning_rate=0.0005,
        checkpoint_steps=2,
        device="cpu",
    )


def weights_digest(checkpoint: Path) -> str:
    return hashlib.sha256((checkpoint / "model.safetensors").read_bytes()).hexdigest()


def copy_first_checkpoint(training: Path, copy: Path, stop: threading.Event) -> None:
    """Ray deletes it when a newer and better one exists."""
    while not stop.wait(0.01):
        for path in training.glob("*/step_000000002/train_state.json"):
            shutil.copytree(path.parent, copy)
            return


def test_a_damaged_training_resumes(
    settings: TrainSettings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    class Kill(BaseException):
        pass

    def kill(*_: object) -> None:
        raise Kill

    old, stop = Path(settings.workdir), threading.Event()
    first = tmp_path / "step_000000002"
    copier = threading.Thread(
        target=copy_first_checkpoint, args=(old / "training", first, stop), daemon=True
    )
    copier.start()
    with monkeypatch.context() as patch:
        patch.setattr(train, "log_model_and_curves", kill)
        with pytest.raises(Kill):
            train.run(settings)
    stop.set()
    copier.join()
    moved = tmp_path / "moved"
    moved.mkdir()
    for name in ("mlflow.db", "mlartifacts", "shards", "stages", "training"):
        shutil.move(old / name, moved / name)
    (folder,) = (moved / "training").iterdir()
    expected = weights_digest(folder / "step_000000006")
    shutil.move(first, folder)
    (folder / "step_000000006" / "velocity.safetensors").write_bytes(b"")
    for path in folder.glob("step_00000000[345]"):
        shutil.rmtree(path)
    (folder / "step_000000009.part").mkdir()
    (folder / ".DS_Store").write_bytes(b"\0")
    (folder / "checkpoint_manager_snapshot.json").write_text('{"ray_version": "0')

    outcome = train.run(settings.model_copy(update={"workdir": str(moved)}))
    output = capsys.readouterr().out
    assert "resuming from the checkpoint of step 2, epoch 1" in output
    assert "velocity.safetensors: the checkpoint can't be read" in output
    assert Path(outcome.result.checkpoint).parent == folder
    assert weights_digest(Path(outcome.result.checkpoint)) == expected
    assert not (old / "training").exists()
    assert len(list(folder.glob("step_*"))) <= 2
