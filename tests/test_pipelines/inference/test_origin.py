"""An output is completed only with what it was begun with, and nothing else is overwritten."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from alexnet.errors import UserError
from pipelines.configuration.command_settings import BatchInferenceSettings
from pipelines.inference.origin import (
    ModelOrigin,
    Origin,
    begin,
    check_output,
    set_run,
    unfinished_run,
)

MODEL = ModelOrigin(uri="models:/m-1", version="alexnet/1", digest="d1", shards="s")
ORIGIN = Origin(images=["/in"], settings={"top_k": 5, "features": None}, models=[MODEL], code="c")


def begun(output: Path) -> str:
    """Begin an output, as far as its listing."""
    begin(str(output), ORIGIN, force=False)
    (output / "_listing" / "part-000000.parquet").write_bytes(b"listing")
    return str(output)


def settings(images: Path | str, output: Path | str, **more: Any) -> BatchInferenceSettings:
    return BatchInferenceSettings(images=[str(images)], output=str(output), **more)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": ["/other"]}, "begun with --images /in, not /other; "),
        ({"settings": {"top_k": 3, "features": None}}, "begun with --top-k 5, not 3; "),
        ({"settings": {"top_k": 5, "features": "fc7"}}, "begun with --features none, not fc7; "),
        (
            {"models": [replace(MODEL, uri="models:/m-2", version="alexnet/2")]},
            r"--model models:/m-1 \(version alexnet/1, sha256 d1\), not models:/m-2 \(version "
            r"alexnet/2, sha256 d1\); ",
        ),
        ({"models": [replace(MODEL, digest="d2")]}, r"sha256 d1\), not .* sha256 d2\); "),
        ({"code": "d"}, "begun with another version of the code; "),
    ],
)
def test_another_origin_is_refused_with_the_difference(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    begun(tmp_path)
    (tmp_path / "part-000000.parquet").write_bytes(b"finished")
    with pytest.raises(UserError, match=message + "give the same, another --output, or --force"):
        begin(str(tmp_path), replace(ORIGIN, **changes), force=False)
    assert (tmp_path / "part-000000.parquet").exists()
    begin(str(tmp_path), replace(ORIGIN, **changes), force=True)
    assert not (tmp_path / "part-000000.parquet").exists()


def test_an_output_without_a_listing_has_not_been_begun(tmp_path: Path) -> None:
    """After a wrong input, the corrected command works."""
    begin(str(tmp_path), ORIGIN, force=False)
    corrected = replace(ORIGIN, images=["/corrected"])
    assert begin(str(tmp_path), corrected, force=False) == corrected


def test_a_version_that_was_registered_later_changes_nothing(tmp_path: Path) -> None:
    """The bytes of further parts name the model as those of the first ones do."""
    begun(tmp_path)
    later = replace(ORIGIN, models=[replace(MODEL, version=None)])
    assert begin(str(tmp_path), later, force=False) == ORIGIN


def test_force_deletes_what_commands_have_written_and_nothing_else(tmp_path: Path) -> None:
    output = tmp_path / "out"
    begin(str(output), ORIGIN, force=False)
    own = ["part-000000.parquet", "part-000001.csv", "part-000001.jsonl", "manifest.json"]
    own += ["report.html", "report/index.html", "_thumbnails/part-000000.parquet"]
    own += ["_listing/part-000000.parquet", f"part-000003.parquet.{'0' * 32}.tmp"]
    foreign = ["notes.txt", "part-000000.parquet.bak", "mine/part-000000.parquet"]
    for name in own + foreign:
        (output / name).parent.mkdir(exist_ok=True)
        (output / name).write_bytes(b"x")
    begin(str(output), ORIGIN, force=True)
    left = {str(p.relative_to(output)) for p in output.rglob("*") if p.is_file()}
    assert left == {*foreign, "_listing/origin.json"}


def test_an_output_with_other_contents_is_refused_also_with_force(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    check_output(settings("/in", tmp_path / "out"))
    (tmp_path / "out" / "part-000000.parquet").write_bytes(b"of another program")
    for force in (False, True):
        with pytest.raises(UserError, match=r"contains part-000000\.parquet, which is not from"):
            check_output(settings("/in", tmp_path / "out", force=force))
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UserError, match="is a file; give a folder as --output"):
        check_output(settings("/in", tmp_path / "file"))


@pytest.mark.parametrize(
    ("images", "output"),
    [
        ("in", "in"),
        ("in", "in/out"),
        ("in", "link/out"),
        ("link", "in/out"),
        ("in/*.jpg", "in/out"),
        ("in/**/*.jpg", "in/a/b"),
    ],
)
def test_an_output_inside_an_input_is_refused(tmp_path: Path, images: str, output: str) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "in")
    with pytest.raises(UserError, match="which is searched for images; give an --output outside"):
        check_output(settings(tmp_path / images, tmp_path / output))


@pytest.mark.parametrize(
    ("images", "output"), [("in/a.jpg", "in/out"), ("in", "in-out"), ("in/list.txt", "in/out")]
)
def test_an_output_beside_an_input_is_not(tmp_path: Path, images: str, output: str) -> None:
    (tmp_path / "in").mkdir()
    for name in ("a.jpg", "list.txt"):
        (tmp_path / "in" / name).write_bytes(b"")
    check_output(settings(tmp_path / images, tmp_path / output))


def test_an_output_in_a_store_inside_an_input_is_refused() -> None:
    with pytest.raises(UserError, match="is inside s3://bucket/in"):
        check_output(settings("s3://bucket/in", "s3://bucket/in/out"))


def test_the_run_is_resumed_until_the_output_is_complete(tmp_path: Path) -> None:
    assert unfinished_run(str(tmp_path)) is None
    set_run(str(tmp_path), "run")
    assert unfinished_run(str(tmp_path)) == "run"
    (tmp_path / "manifest.json").write_text("{}")
    assert unfinished_run(str(tmp_path)) is None


def test_what_killed_processes_have_left_is_deleted(tmp_path: Path) -> None:
    begun(tmp_path)
    left = tmp_path / f"part-000003.parquet.{'0a' * 16}.tmp"
    left.write_bytes(b"half")
    (tmp_path / "notes.tmp").write_bytes(b"")
    begin(str(tmp_path), ORIGIN, force=False)
    assert not left.exists()
    assert (tmp_path / "notes.tmp").exists()


def test_a_folder_that_cannot_be_written_names_the_option(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UserError, match=r"can't be written .*; choose another --output"):
        begin(str(tmp_path / "file" / "out"), ORIGIN, force=False)


def test_a_damaged_origin_is_one_line(tmp_path: Path) -> None:
    begun(tmp_path)
    (tmp_path / "_listing" / "origin.json").write_text("{")
    with pytest.raises(UserError, match=r"origin\.json: can't be read"):
        begin(str(tmp_path), ORIGIN, force=False)
