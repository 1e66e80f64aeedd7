"""The dry run: counts, an estimate, and no files."""

import hashlib
from pathlib import Path

import factories
import pytest
from source_layouts import image_data_set, replace_val_images_by_links, write_archives

from alexnet.errors import UserError
from alexnet.sources import md5
from pipelines import preprocess
from pipelines.preprocessing import source as source_module
from pipelines.settings import PreprocessCommandSettings


def test_a_dry_run_counts_and_writes_nothing(
    raw_images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    workdir = tmp_path / "work"
    settings = PreprocessCommandSettings.model_validate(
        {
            "source": str(raw_images),
            "workdir": str(workdir),
            "rows_per_shard": 15,
            "encoding": "raw",
            "dry_run": True,
        }
    )
    result = preprocess.command(settings).to_json()
    assert not workdir.exists()
    classes = len(factories.CLASSES)
    assert result["train_images"] == factories.TRAIN * classes
    assert result["val_images"] == factories.VAL * classes
    assert result["shards"] == 3 + 1
    assert result["source_bytes"] == sum(p.stat().st_size for p in raw_images.glob("*/*/*"))
    # All images are in the random sample, and nothing is stored of the truncated one.
    assert result["estimated_bytes"] == (result["images"] - 1) * 256 * 256 * 3
    assert result["estimated_seconds"] > 0
    lines = capsys.readouterr().out.splitlines()
    counts = [line.split()[:3] for line in lines if line.startswith("n0")]
    assert counts == [
        [wnid, str(factories.TRAIN), str(factories.VAL)] for wnid in factories.CLASSES
    ]


def test_a_link_to_no_file_is_counted(tmp_path: Path) -> None:
    source, data = tmp_path / "archives", image_data_set()
    write_archives(source, data)
    replace_val_images_by_links(source, data)
    values = {"source": str(source), "workdir": str(tmp_path / "work"), "dry_run": True}
    result = preprocess.command(PreprocessCommandSettings.model_validate(values)).to_json()
    assert result["val_images"] == 4
    sizes = [len(content) for images in data.train.values() for content in images.values()]
    sizes += [2 * len(data.val["v_1"]), len(data.val["v_4"])]
    assert result["source_bytes"] == sum(sizes)


def test_archives_are_compared_with_their_md5(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "archives"
    write_archives(source, image_data_set())
    values = {"source": str(source), "workdir": str(tmp_path / "work")}
    settings = PreprocessCommandSettings.model_validate(
        values | {"check_md5": True, "dry_run": True}
    )
    with pytest.raises(UserError, match=r"img_train\.tar: md5 is .* download it again"):
        preprocess.command(settings)
    sums = {name: hashlib.md5((source / name).read_bytes()).hexdigest() for name in md5.OFFICIAL}
    monkeypatch.setattr(source_module, "OFFICIAL", sums)
    assert preprocess.command(settings).to_json()["dry_run"] is True
    assert "preprocess: md5 of ILSVRC2012_img_val.tar: " in capsys.readouterr().out
