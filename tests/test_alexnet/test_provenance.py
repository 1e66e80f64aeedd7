"""What changes a code version, and what does not: a small package with random imports."""

import ast
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alexnet import provenance
from alexnet.provenance import code_version, import_closure
from pipelines.stage_keys.stage_code import BOUNDARY, CODE

ROOT = Path(provenance.__file__).parents[1]
NAMES = ("a", "b", "c", "d", "e", "plots")

graphs = st.dictionaries(
    st.sampled_from(NAMES), st.lists(st.sampled_from(NAMES), max_size=3), max_size=len(NAMES)
)


def write_package(root: Path, graph: dict[str, list[str]]) -> None:
    """One module for each name; each imports some of the others, in one of three ways."""
    shutil.rmtree(root, ignore_errors=True)
    (root / "house").mkdir(parents=True)
    (root / "house" / "__init__.py").write_text('"""A package."""\n')
    for name in NAMES:
        lines = ['"""A module."""', "X = 1"]
        for number, other in enumerate(graph.get(name, [])):
            lines += (
                [f"from house import {other}"],
                [f"from house.{other} import X as Y"],
                ["def late():", '    """Late."""', f"    import house.{other}", "    return X"],
            )[number % 3]
        (root / "house" / f"{name}.py").write_text("\n".join(lines) + "\n")


def reachable(graph: dict[str, list[str]], start: str) -> set[str]:
    """The names that a walk from ``start`` comes to, without passing through ``plots``."""
    seen: set[str] = set()
    waiting = [start]
    while waiting:
        name = waiting.pop()
        if name not in seen and name != "plots":
            seen.add(name)
            waiting += graph.get(name, [])
    return seen


def version(root: Path) -> str:
    return code_version(["house.a"], boundary=["house.plots"], root=root)


@given(graph=graphs, changed=st.sampled_from(NAMES))
def test_a_changed_value_changes_the_version_of_all_that_import_it(
    tmp_path_factory: pytest.TempPathFactory, graph: dict[str, list[str]], changed: str
) -> None:
    root = tmp_path_factory.getbasetemp() / "values"
    write_package(root, graph)
    before = version(root)
    path = root / "house" / f"{changed}.py"
    path.write_text(path.read_text().replace("X = 1", "X = 2"))
    assert (version(root) != before) == (changed in reachable(graph, "a"))


COSMETIC = (
    lambda text: "# A comment.\n" + text,
    lambda text: text.replace('"""A module."""', '"""Another docstring."""'),
    lambda text: text.replace('"""Late."""', '"""Later."""'),
    lambda text: text.replace("X = 1", 'X = 1\n"""What X is."""'),
    lambda text: text.replace("X = 1", "X  =  (1)  # One."),
    lambda text: text.replace("\n", "\n\n"),
)


@given(
    graph=graphs,
    edits=st.lists(st.tuples(st.sampled_from(NAMES), st.sampled_from(COSMETIC)), min_size=1),
)
def test_comments_docstrings_and_formatting_change_nothing(
    tmp_path_factory: pytest.TempPathFactory, graph: dict[str, list[str]], edits: list[object]
) -> None:
    root = tmp_path_factory.getbasetemp() / "cosmetics"
    write_package(root, graph)
    before = version(root)
    for name, edit in edits:  # type: ignore[misc]
        path = root / "house" / f"{name}.py"  # type: ignore[has-type]
        path.write_text(edit(path.read_text()))  # type: ignore[has-type]
    assert version(root) == before


def test_imports_for_the_type_checker_do_not_count(tmp_path: Path) -> None:
    write_package(tmp_path, {})
    path = tmp_path / "house" / "a.py"
    path.write_text("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import house.b\n")
    assert import_closure(["house.a"], root=tmp_path) == ["house.a"]


def test_libraries_beside_the_project_do_not_count(tmp_path: Path) -> None:
    """As in ``site-packages``, where an installed project is one package among others."""
    write_package(tmp_path, {"a": ["b"]})
    (tmp_path / "library.py").write_text("X = 1\n")
    path = tmp_path / "house" / "b.py"
    path.write_text("import library\n" + path.read_text())
    assert import_closure(["house.a"], root=tmp_path) == ["house.a", "house.b"]


def test_an_entry_that_is_no_module_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"house\.nothing"):
        code_version(["house.nothing"], root=tmp_path)


COUNTS = {
    "preprocess": {"alexnet.shards.decode", "alexnet.shards.resize", "alexnet.sources.tar"},
    "train": {"alexnet.kernels.lrn", "alexnet.kernels.crop", "alexnet.model.placement"},
    "evaluate": {"alexnet.model.classifier", "alexnet.training.augment"},
}
"""Some of what each stage's result depends on."""

STAGES = pytest.mark.parametrize("stage", COUNTS)


@STAGES
def test_a_changed_docstring_or_figure_makes_no_stage_run_again(stage: str, tmp_path: Path) -> None:
    for package in ("alexnet", "pipelines"):
        shutil.copytree(ROOT / package, tmp_path / package)
    entries = CODE[stage]
    before = code_version(entries, boundary=BOUNDARY, root=tmp_path)
    for path in tmp_path.rglob("*.py"):
        text = path.read_text()
        lines = text.splitlines(keepends=True)
        tree = ast.parse(text)
        docstring = tree.body[0] if tree.body else None
        if isinstance(docstring, ast.Expr):
            lines[: docstring.end_lineno] = ['"""Another docstring."""\n', "# A comment.\n"]
        path.write_text("".join(lines))
    for path in (tmp_path / "alexnet" / "plots").glob("*.py"):
        path.write_text(path.read_text() + "\nNEW = 1\n")
    assert code_version(entries, boundary=BOUNDARY, root=tmp_path) == before


@STAGES
def test_a_change_in_any_module_that_counts_makes_the_stage_run_again(
    stage: str, tmp_path: Path
) -> None:
    for package in ("alexnet", "pipelines"):
        shutil.copytree(ROOT / package, tmp_path / package)
    entries = CODE[stage]
    closure = import_closure(entries, boundary=BOUNDARY, root=tmp_path)
    assert set(closure) >= COUNTS[stage]
    assert not any(name.startswith("alexnet.plots") for name in closure)
    before = code_version(entries, boundary=BOUNDARY, root=tmp_path)
    for name in closure:
        path = tmp_path.joinpath(*name.split(".")).with_suffix(".py")
        if not path.is_file():
            path = tmp_path.joinpath(*name.split("."), "__init__.py")
        text = path.read_text()
        path.write_text(text + "\nNEW = 1\n")
        assert code_version(entries, boundary=BOUNDARY, root=tmp_path) != before, name
        path.write_text(text)
