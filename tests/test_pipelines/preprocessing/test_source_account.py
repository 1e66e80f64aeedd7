"""What became of the source's files: in the terminal, the JSON line, the manifest and MLflow."""

import os
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from source_layouts import WRITERS, image_data_set, write_file

from alexnet.errors import UnaccountedFilesError
from alexnet.shards.manifest import read_manifest
from alexnet.shards.plan import ShardTask
from alexnet.shards.write import ShardResult, make_shard
from pipelines import cluster, preprocess
from pipelines.preprocessing import dataset
from pipelines.preprocessing.job import RejectCounter
from pipelines.settings import PreprocessSettings
from pipelines.tracking.store import connect


def make_shards(
    missing: list[ShardTask], rejects: RejectCounter
) -> tuple[dict[ShardTask, ShardResult], float]:
    """The job without Ray."""
    results = {task: make_shard(task) for task in missing}
    for result in results.values():
        rejects.add(result)
    return results, 1.0


@pytest.fixture(autouse=True)
def _without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dataset, "make_shards", make_shards)
    monkeypatch.setattr(cluster, "connect_in_background", lambda: None)


def settings_of(root: Path, workdir: str, **more: Any) -> PreprocessSettings:
    values = {"source": str(root), "workdir": workdir, "max_reject_fraction": 0.2}
    return PreprocessSettings.model_validate(values | more)


@pytest.mark.parametrize("layout", WRITERS)
def test_the_numbers_add_up_everywhere(
    layout: str, mlflow_workdir: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "raw"
    WRITERS[layout](root, image_data_set())
    write_file(root / "._README", b"fork")
    write_file(root / "left.JPEG", b"left over")
    files = sum(len(names) for _, _, names in os.walk(root))
    with pytest.raises(UnaccountedFilesError, match=r"left over: 1 \(left\.JPEG\)"):
        preprocess.run(settings_of(root, mlflow_workdir))
    assert not (Path(mlflow_workdir) / "shards").exists()
    settings = settings_of(root, mlflow_workdir, allow_leftover=True)
    outcome = preprocess.run(settings)
    result = outcome.to_json()

    # Besides the files in the folder: class archives and images in archives, and Parquet rows.
    inside = {"archives": 3 + 16, "parquet": 16}.get(layout, 0)
    assert result["files_found"] == files + inside
    assert result["files_found"] == (
        result["files_used"] + result["rejected"] + result["files_ignored"]
    )
    assert (result["images"], result["rejected"]) == (15, 1)
    ignored = result["ignored_by_rule"]
    assert (ignored["macOS"], ignored["left over"]) == (1, 1)
    assert sum(ignored.values()) == result["files_ignored"]

    manifest = read_manifest(result["shards"])
    assert manifest.source_files is not None
    assert manifest.source_files.found == result["files_found"]
    assert manifest.source_files.ignored == ignored
    assert manifest.source_files.rejected == len(pq.read_table(manifest.rejects_path))
    metrics = connect(settings).client.get_run(outcome.run_id).data.metrics
    for name in ("files_found", "files_used", "rejected", "files_ignored"):
        assert metrics[name] == result[name]
    assert f"preprocess: {result['files_found']} files: " in capsys.readouterr().out


def test_leftover_files_do_not_change_the_shards(mlflow_workdir: str, tmp_path: Path) -> None:
    root = tmp_path / "raw"
    WRITERS["folders"](root, image_data_set())
    first = preprocess.run(settings_of(root, mlflow_workdir))
    write_file(root / "left.JPEG", b"left over")
    second = preprocess.run(settings_of(root, mlflow_workdir, allow_leftover=True))
    assert second.skipped
    assert second.result == first.result
