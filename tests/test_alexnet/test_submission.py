"""Submission files against cases computed by hand; wrong files are reported in one line."""

import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from factories import predictions_table
from scipy.io import savemat

from alexnet.errors import UserError
from alexnet.predictions import of_table
from alexnet.shards.format import write_table
from alexnet.sources.labels import Devkit, read_devkit
from alexnet.submission import lines, main, score

# The order of the IDs is not that of the WordNet IDs: class index 0, 1, ... has these IDs.
IDS = (4, 6, 1, 3, 2, 5)
WNIDS = [f"n{k:08}" for k in range(6)]
TRUTH = (4, 1, 6, 6)
"""ILSVRC2012_ID of the four validation images."""


def write_kit(folder: Path, classes: int = 6) -> str:
    fields = ("ILSVRC2012_ID", "WNID", "words", "num_children")
    rows = [(IDS[k], WNIDS[k], f"class {k}", 0) for k in range(classes)]
    buffer = io.BytesIO()
    array = np.array(rows, dtype=[(field, object) for field in fields])
    savemat(buffer, {"synsets": array.reshape(-1, 1)})
    truth = "".join(f"{number}\n" for number in TRUTH).encode()
    path = folder / "ILSVRC2012_devkit_t12.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for name, content in (
            ("meta.mat", buffer.getvalue()),
            ("ILSVRC2012_validation_ground_truth.txt", truth),
        ):
            member = tarfile.TarInfo(f"kit/data/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return str(path)


@pytest.fixture
def kit(tmp_path: Path) -> str:
    return write_kit(tmp_path)


@pytest.fixture
def devkit(kit: str) -> Devkit:
    return read_devkit(kit)


def keys(numbers: Sequence[int]) -> list[str]:
    """Keys whose order is not that of the file names."""
    return [f"val/{9 - n}/ILSVRC2012_val_{n:08}.JPEG" for n in numbers]


def test_a_file_has_ids_in_the_order_of_file_names(devkit: Devkit) -> None:
    # True class indices of images 1 to 4 are 0, 2, 1, 1; predicted are 0, 5, 1, 3.
    table = predictions_table([0, 2, 1, 1], [0, 5, 1, 3], classes=6, keys=keys([1, 2, 3, 4]))
    assert lines(of_table(table), devkit) == [
        "4 6 1 3 2",  # Classes 0 1 2 3 4
        "5 4 6 1 3",  # 5 0 1 2 3
        "6 4 1 3 2",  # 1 0 2 3 4
        "3 4 6 1 2",  # 3 0 1 2 4
    ]


def write_submission(folder: Path, *rows: str) -> str:
    path = folder / "submission.txt"
    path.write_text("\n".join(rows) + "\n")
    return str(path)


def test_a_score_by_hand(tmp_path: Path, devkit: Devkit) -> None:
    path = write_submission(
        tmp_path,
        "4 6 1 3 2",  # Right.
        "5 4 6 1 3",  # The truth, 1, is fourth.
        "6 4 1 3 2",  # Right.
        "3 4 5 1 2",  # 6 is not among them.
    )
    counts = score(path, devkit)
    assert (counts.images, counts.top1_wrong, counts.top5_wrong) == (4, 2, 1)


def test_written_files_have_the_predictions_errors(tmp_path: Path, devkit: Devkit) -> None:
    table = predictions_table([0, 2, 1, 1], [0, 5, 1, 3], classes=6, keys=keys([1, 2, 3, 4]))
    counts = score(write_submission(tmp_path, *lines(of_table(table), devkit)), devkit)
    assert (counts.top1_wrong, counts.top5_wrong) == (2, 0)


GOOD = ["4 6 1 3 2"] * 4


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (GOOD[:3], "has 3 lines, and the development kit 4"),
        ([*GOOD, "4 6 1 3 2"], "has 5 lines"),
        ([*GOOD[:3], "4 6 1 3"], "line 4 has 4 IDs; write 5"),
        (["4 6 1 3 2 5", *GOOD[1:]], "line 1 has 6 IDs"),
        (["4 6 1 3 7", *GOOD[1:]], "line 1 has '7', which is not the ILSVRC2012_ID"),
        (["4 6 1 3 x", *GOOD[1:]], "IDs are 1 to 6"),
        (["4 6 1 3 ü", *GOOD[1:]], "can't be read as text"),
    ],
)
def test_a_wrong_file_is_reported(
    tmp_path: Path, devkit: Devkit, rows: list[str], words: str
) -> None:
    with pytest.raises(UserError) as caught:
        score(write_submission(tmp_path, *rows), devkit)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("names", "classes", "words"),
    [
        (keys([1, 2, 4]), 6, "ILSVRC2012_val_00000003 has none"),
        (keys([1, 2, 3, 4, 5]), 6, "predictions of 5 images"),
        ([*keys([1, 2, 3, 4]), "b/ILSVRC2012_val_00000001.JPEG"], 6, "predictions of 5 images"),
        (["red/1.jpg", *keys([2, 3, 4])], 6, "red/1.jpg: not named like"),
        (keys([1, 2, 3, 4]), 7, "not the 6 of the development kit"),
        (keys([1, 2, 3, 4]), 4, "a submission has 5 classes for each image"),
        (keys([1, 2, 3, 4]), 1, "these predictions know 1"),
    ],
)
def test_predictions_that_are_no_submission(
    devkit: Devkit, names: list[str], classes: int, words: str
) -> None:
    zeros = [0] * len(names)
    table = predictions_table(zeros, zeros, classes=classes, keys=names)
    with pytest.raises(UserError, match=words):
        lines(of_table(table), devkit)


def test_the_command(tmp_path: Path, kit: str, capsys: pytest.CaptureFixture[str]) -> None:
    table = predictions_table([0, 2, 1, 1], [0, 5, 1, 3], classes=6, keys=keys([1, 2, 3, 4]))
    write_table(str(tmp_path / "p.parquet"), table)
    output = str(tmp_path / "submission.txt")
    main(["write", str(tmp_path / "p.parquet"), kit, output])
    assert json.loads(capsys.readouterr().out) == {"images": 4, "submission": output}
    main(["score", output, kit])
    scored = json.loads(capsys.readouterr().out)
    assert (scored["images"], scored["top1_error"], scored["top5_error"]) == (4, 50.0, 0.0)
    assert scored["top1_error_low"] == pytest.approx(15.004, abs=1e-3)
    assert scored["top1_error_high"] == pytest.approx(84.996, abs=1e-3)


def test_five_classes_have_no_top5_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kit = write_kit(tmp_path, 5)
    path = write_submission(tmp_path, *["4 6 1 3 2"] * 4)
    main(["score", path, kit])
    scored = json.loads(capsys.readouterr().out)
    assert scored["top5_error"] is None
    assert "top5_error_low" not in scored


@pytest.mark.parametrize("missing", ["predictions", "devkit"])
def test_the_command_reports_errors_in_one_line_and_writes_nothing(
    tmp_path: Path, kit: str, capsys: pytest.CaptureFixture[str], missing: str
) -> None:
    output = tmp_path / "submission.txt"
    devkit = kit if missing == "predictions" else str(tmp_path / "none.tar.gz")
    with pytest.raises(SystemExit) as caught:
        main(["write", str(tmp_path / "none.parquet"), devkit, str(output)])
    assert caught.value.code == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("python -m alexnet.submission: ")
    assert printed.err.count("\n") == 1
    assert not output.exists()
