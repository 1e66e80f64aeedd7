"""The dry run: counts, an estimate, and no files."""

import hashlib
from pathlib import Path

import factories
import pytest
from source_layouts import (
    TEXT_DATA_SET,
    image_data_set,
    replace_val_images_by_links,
    write_archives,
    write_file,
    write_folders,
)

from alexnet.errors import UserError
from alexnet.sources import md5
from pipelines import preprocess
from pipelines.console.cli import explain
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
    with pytest.raises(UserError, match=r"1 of 16 images are empty files or links to .* \(val"):
        preprocess.command(PreprocessCommandSettings.model_validate(values))
    values["max_reject_fraction"] = 0.1
    result = preprocess.command(PreprocessCommandSettings.model_validate(values)).to_json()
    assert (result["val_images"], result["rejected"], result["sample_rejected"]) == (4, 1, 2)
    assert result["files_found"] == 16 + 3 + 3
    assert result["files_used"] + result["rejected"] == result["files_found"]
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


def dry_run(source: Path, **more: object) -> dict[str, object]:
    values = {"source": str(source), "workdir": str(source / "work"), "dry_run": True} | more
    return preprocess.command(PreprocessCommandSettings.model_validate(values)).to_json()


def test_leftover_files_stop_a_dry_run_after_the_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_folders(tmp_path, image_data_set())
    write_file(tmp_path / "val/loose.JPEG", b"x")
    write_file(tmp_path / "val/.DS_Store", b"x")
    with pytest.raises(UserError) as caught:
        dry_run(tmp_path)
    assert explain(caught.value) == (
        f"{tmp_path}: left over: 1 (val/loose.JPEG), beside the class folders: move each into the "
        "folder of its class; or give --allow-leftover to go on without them"
    )
    assert "n02-b" in capsys.readouterr().out
    result = dry_run(tmp_path, allow_leftover=True)
    assert result["ignored_by_rule"] == {"macOS": 1, "left over": 1}
    assert (result["files_found"], result["files_ignored"]) == (18, 2)
    out = capsys.readouterr().out
    assert "18 files: 16 used, 0 rejected, 2 ignored (left over 1, macOS 1)" in out
    assert "--allow-leftover: " in out


def test_pointers_of_git_lfs_stop_a_dry_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = image_data_set()
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:%064d\nsize 12345\n"
    val = {name: pointer % number for number, name in enumerate(data.val)}
    write_folders(tmp_path, data._replace(val=val))
    with pytest.raises(UserError, match=r"run `git lfs pull` in the repository\): 4 \(val/n01"):
        dry_run(tmp_path)
    result = dry_run(tmp_path, allow_leftover=True)
    assert (result["sampled"], result["sample_rejected"]) == (16, 5)
    out = capsys.readouterr().out
    assert "5 of 16 random images can't be read; with more than --max-reject-fraction 0.01" in out
    assert "val/n01/v_2.JPEG: not downloaded (a pointer of Git LFS" in out


def test_a_dry_run_without_a_readable_image_is_an_error(tmp_path: Path) -> None:
    train = {wnid: {"a": b"no"} for wnid in TEXT_DATA_SET.train}
    write_folders(tmp_path, TEXT_DATA_SET._replace(train=train))
    with pytest.raises(UserError, match=r"none of 7 random images can be read; .*: not an image"):
        dry_run(tmp_path)
