"""Errors in the tasks and actors of Ray Data: one line with the remedy, without a traceback."""

import errno
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NoReturn

import factories
import numpy as np
import pyarrow as pa
import pytest
import torch
from ray.cluster_utils import Cluster
from ray_clusters import cluster_of

from alexnet.errors import CorruptShardError, UserError
from alexnet.shards.manifest import Manifest, read_manifest
from pipelines import batch_inference, evaluate
from pipelines.clusters.task_errors import errors_as_rows, raise_errors, raise_packed
from pipelines.console.redact import SecretUri
from pipelines.inference.actors import Evaluator
from pipelines.preprocessing.worker import ShardWriter
from pipelines.results.records import StageKey, finish, start
from pipelines.results.stage_results import PreprocessResult
from pipelines.settings import Settings
from pipelines.tracking.run import active_run, open_run
from pipelines.tracking.store import Store, connect
from pipelines.workdir import Workdir

SCHEMA = pa.schema([("key", pa.string()), ("values", pa.list_(pa.float32()))])


@errors_as_rows(SCHEMA)
def table_or_error(result: pa.Table | Exception) -> pa.Table:
    """The table of a task, or an exception in it."""
    if isinstance(result, Exception):
        raise result
    return result


@pytest.mark.parametrize("rows", [0, 2])
def test_a_table_without_an_error_is_unchanged(rows: int) -> None:
    table = pa.table({"key": ["a", "b"], "values": [[1.5], []]}).slice(0, rows)
    returned = table_or_error(table)
    assert returned.schema.names == ["key", "values", "error"]
    assert raise_errors(returned).equals(table.cast(SCHEMA))


@pytest.mark.parametrize(
    "error", [CorruptShardError("a.parquet: damaged"), OSError(errno.ENOSPC, "full", "b.parquet")]
)
def test_an_error_arrives_as_what_it_is_also_among_other_rows(error: Exception) -> None:
    fine = table_or_error(pa.table({"key": ["a"], "values": [[1.5]]}))
    table = pa.concat_tables([fine, table_or_error(error), fine])
    with pytest.raises(type(error)) as caught:
        raise_errors(table)
    assert type(caught.value) is type(error)
    assert str(caught.value) == str(error)


def test_a_bug_is_not_a_row() -> None:
    with pytest.raises(ZeroDivisionError):
        table_or_error(ZeroDivisionError())


def damage(manifest: Manifest, folder: Path) -> Manifest:
    """A copy of a data set in which a byte in the images of a validation shard has changed."""
    shutil.copytree(manifest.folder, folder)
    path = folder / manifest.shards["val"][0].file
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    return read_manifest(str(folder))


STORE = Store(SecretUri("sqlite:////nowhere/mlflow.db"), "1")


def test_a_damaged_shard_in_the_evaluator(dataset: Manifest, tmp_path: Path) -> None:
    group = asdict(damage(dataset, tmp_path / "shards").row_groups("val")[0])
    items = {name: np.array([value]) for name, value in group.items()}
    returned = Evaluator(STORE, {"models:/m-1": "float32"}, 1)(items)
    with pytest.raises(CorruptShardError, match=r"shards/val/part-00000\.parquet"):
        raise_errors(returned)


@pytest.mark.parametrize("kind", ["source", "disk"])
def test_an_error_in_the_writer_of_shards(
    raw_images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    raw = tmp_path / "raw"
    shutil.copytree(raw_images, raw)
    task = factories.plan(raw, tmp_path / "shards")[0]
    if kind == "source":
        shutil.rmtree(raw)
    else:

        def full(*_: Any) -> NoReturn:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(os, "replace", full)
    row = ShardWriter()({"number": 3, "task": asdict(task)})
    assert row["number"] == 3
    with pytest.raises(UserError if kind == "source" else OSError) as caught:
        raise_packed(row["error"])
    expected = "can't be read any more" if kind == "source" else "can't be written .*No space left"
    assert caught.match(rf"{expected}.*give the same command again: finished shards are kept")


class Constant(torch.nn.Module):
    """Crops → the same outputs for all, whatever they are."""

    outputs: torch.Tensor

    def __init__(self, outputs: list[float]) -> None:
        super().__init__()
        self.register_buffer("outputs", torch.tensor(outputs))

    def forward(self, crops: torch.Tensor) -> torch.Tensor:
        """(N, 224, 224, 3) → (N, classes)."""
        return crops.float().mean(dim=(1, 2, 3))[:, None] * 0 + self.outputs


@dataclass(frozen=True)
class Evaluated:
    """A workdir with a data set, of which a shard is damaged or not, and two models."""

    workdir: Path
    good: str
    bad: str
    """A model that outputs NaN."""


@pytest.fixture(scope="module")
def nodes() -> Iterator[Cluster]:
    with cluster_of({"num_cpus": 2, "object_store_memory": 100 * 2**20}) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def evaluated(dataset: Manifest, tmp_path_factory: pytest.TempPathFactory) -> Evaluated:
    folder = tmp_path_factory.mktemp("work")
    manifest = damage(dataset, folder / "damaged")
    shutil.copytree(dataset.folder, folder / "shards")
    store = connect(Settings(workdir=str(folder)))
    metadata = {"classes": [list(label) for label in manifest.labels]}
    example = np.zeros((2, 224, 224, 3), np.uint8)
    models = []
    for outputs in ([0.25] * 4, [0.25, np.nan, 0.25, 0.25]):
        with active_run(store, open_run(store, "train", resume=None, parent=None)) as run:
            models.append(run.log_model(Constant(outputs), example, metadata))
    return Evaluated(folder, *models)


def use_shards(workdir: Path, name: str) -> None:
    """Make one of the data sets the workdir's newest."""
    result = PreprocessResult(
        images=1,
        train_images=1,
        val_images=1,
        classes=4,
        rejected=0,
        shards_made=1,
        shards_kept=0,
        images_per_second=1.0,
        bytes=1,
        digest=name,
        shards=str(workdir / name),
        content=read_manifest(str(workdir / name)).content_digest(),
    )
    key = StageKey(stage="preprocess", settings={}, inputs={"source": name}, code="")
    finish(Workdir(str(workdir)), start(Workdir(str(workdir)), key, lambda _: "run"), 1.0, result)


@pytest.fixture
def error_of(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., str]:
    """Runs a command that ends with status 2; returns its only line on standard error."""

    def run(main: Callable[[], NoReturn], *arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["prog", *arguments])
        capfd.readouterr()
        with pytest.raises(SystemExit) as caught:
            main()
        out, err = capfd.readouterr()
        assert caught.value.code == 2, err
        assert "Traceback" not in out
        assert len(err.splitlines()) == 1, err
        return err.rstrip("\n")

    return run


@pytest.mark.cluster
@pytest.mark.slow
@pytest.mark.long
def test_errors_in_evaluation_are_one_line(
    nodes: Cluster, evaluated: Evaluated, error_of: Callable[..., str]
) -> None:
    workdir = str(evaluated.workdir)
    command = ["--workdir", workdir, "--device", "cpu", "--model"]
    use_shards(evaluated.workdir, "damaged")
    line = error_of(evaluate.main, *command, evaluated.good)
    assert line.startswith(f"prog: {workdir}/damaged/val/part-00000.parquet: the shard can't be ")
    assert line.endswith(
        "; run pipelines/preprocess.py --verify, which writes damaged shards again"
    )
    use_shards(evaluated.workdir, "shards")
    line = error_of(evaluate.main, *command, evaluated.good, evaluated.bad)
    assert line.startswith(f"prog: {evaluated.bad}: outputs NaN instead of probabilities; ")
    assert not list(evaluated.workdir.glob("evaluations/*/*"))


@pytest.mark.cluster
@pytest.mark.slow
@pytest.mark.long
def test_errors_in_batch_inference_are_one_line(
    nodes: Cluster, evaluated: Evaluated, raw_images: Path, error_of: Callable[..., str]
) -> None:
    output, other = evaluated.workdir / "out", evaluated.workdir / "other"
    command = ["--workdir", str(evaluated.workdir), "--device", "cpu", "--views", "1"]
    command += ["--images", str(raw_images / "val"), "--output"]
    line = error_of(batch_inference.main, *command, str(output), "--model", evaluated.bad)
    assert line.startswith(f"prog: {evaluated.bad}: outputs NaN instead of probabilities; ")
    assert [path.name for path in output.iterdir()] == ["_listing"]
    name = evaluated.good.removeprefix("models:/")
    for path in evaluated.workdir.glob(f"mlartifacts/**/{name}/artifacts/data/*"):
        path.unlink()
    line = error_of(batch_inference.main, *command, str(other), "--model", evaluated.good)
    assert line.startswith(f"prog: {evaluated.good}: no AlexNet model can be loaded from there")
    assert not other.exists()
