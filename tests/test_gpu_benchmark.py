"""``tests/benchmarks/gpu.py`` works, in its reduced form and on any computer."""

import json
import runpy
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent / "benchmarks"
SECTIONS = {"correctness", "step", "normalization", "loader", "job", "towers"}


def test_the_reduced_form_measures_everything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "gpu.json"
    monkeypatch.delenv("ALEXNET_REAL_DATA", raising=False)
    monkeypatch.syspath_prepend(FOLDER)
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--reduced", "--output", str(output)])
    runpy.run_path(str(FOLDER / "gpu.py"), run_name="__main__")
    for name in ("ingest", "preprocess"):
        del sys.modules[name]
    result = json.loads(output.read_text())
    rows = {row["what"]: row for row in result["rows"]}
    assert len(rows) == len(result["rows"])
    assert {row["section"] for row in rows.values()} == SECTIONS
    table = capsys.readouterr().out
    for what, row in rows.items():
        assert row["note"] == ""
        assert what in table
        if row["section"] == "correctness":
            assert 0 <= row["value"] < 1e-3
        else:
            assert row["value"] > 0
    assert result["reduced"] is True
    assert result["goals"] == {}
