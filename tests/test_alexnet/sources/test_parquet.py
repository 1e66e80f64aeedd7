"""Data sets in the layout of the Hub: class names, keys, and errors for unsuitable files."""

import json
from collections.abc import Sequence
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from source_layouts import read_error, write_parquet, write_parquet_file

from alexnet import storage
from alexnet.sources.labels import Label
from alexnet.sources.parquet_files import find
from alexnet.sources.read import Source, read_source

Rows = Sequence[tuple[str | None, bytes | None, int | str | None]]

NAMES = ["cat", "dog"]
TRAIN, VAL = "train-00000-of-00001.parquet", "validation-00000-of-00001.parquet"


def source_of(
    root: Path, train: Rows, val: Rows, names: Sequence[str] | None = None
) -> dict[str, tuple[str, int, str, int]]:
    write_parquet_file(root / TRAIN, train, names)
    write_parquet_file(root / VAL, val, names)
    return rows_of(read_source(str(root)))


def rows_of(source: Source) -> dict[str, tuple[str, int, str, int]]:
    """WordNet ID, class index, file and row by key."""
    assert source.layout == "parquet"
    assert set(source.index["size"].to_pylist()) == {0}
    return {
        row["key"]: (
            row["wnid"],
            row["label"],
            row["path"].rpartition("/")[2],
            row["offset"],
        )
        for row in source.index.to_pylist()
    }


@pytest.mark.parametrize(
    "names",
    [
        ("train-0.parquet", "validation-0.parquet"),
        ("train.parquet", "val.parquet"),
        ("data/train-0.parquet", "data/val-0.parquet"),
        ("train/0000.parquet", "validation/0000.parquet"),
        ("data/train/part.parquet", "data/valid/part.parquet"),
    ],
)
def test_files_are_found_under_all_usual_names(tmp_path: Path, names: tuple[str, str]) -> None:
    for name in names:
        write_parquet_file(tmp_path / name, [("x.png", b"x", 0)], NAMES)
    files = find(str(tmp_path))
    assert files is not None
    assert {split: [file.path for file in files[split]] for split in files} == {
        "train": [str(tmp_path / names[0])],
        "val": [str(tmp_path / names[1])],
    }
    assert rows_of(read_source(str(tmp_path))).keys() == {"train/cat/x.png", "val/cat/x.png"}


def test_other_files_are_ignored(tmp_path: Path) -> None:
    source_of(tmp_path, [("x", b"", 0)], [("x", b"", 0)], NAMES)
    others = ("test-0.parquet", "training.parquet", "train-0.csv", ".train-1.parquet", "train/x")
    for name in others:
        storage.write_bytes(str(tmp_path / name), b"other")
    assert len(rows_of(read_source(str(tmp_path)))) == 2
    for name in (TRAIN, VAL):
        (tmp_path / name.partition("-")[0]).mkdir(exist_ok=True)
        (tmp_path / name).rename(tmp_path / name.partition("-")[0] / "0.parquet")
    storage.write_bytes(str(tmp_path / "train/.1.parquet"), b"other")
    assert len(rows_of(read_source(str(tmp_path)))) == 2


def test_class_names_that_can_be_folders_are_the_wordnet_ids(tmp_path: Path) -> None:
    rows = source_of(tmp_path, [("a", b"", 1), ("a", b"", 0)], [("a", b"", 1)], NAMES)
    assert rows == {
        "train/cat/a": ("cat", 0, TRAIN, 1),
        "train/dog/a": ("dog", 1, TRAIN, 0),
        "val/dog/a": ("dog", 1, VAL, 0),
    }
    assert read_source(str(tmp_path)).labels == (Label("cat", "cat"), Label("dog", "dog"))


def test_wordnet_ids_are_taken_from_the_names_of_images(tmp_path: Path) -> None:
    words = ["tench, Tinca tinca", "goldfish, Carassius auratus"]
    rows = source_of(
        tmp_path,
        [
            ("n01443537_2_n01443537.JPEG", b"", 1),
            ("n01440764_10026_n01440764.JPEG", b"", 0),
            ("n01443537_1_n01443537.JPEG", b"", 1),
        ],
        [("ILSVRC2012_val_00000293.JPEG", b"", 0)],
        words,
    )
    assert rows["train/n01440764/n01440764_10026_n01440764.JPEG"] == ("n01440764", 0, TRAIN, 1)
    assert rows["val/n01440764/ILSVRC2012_val_00000293.JPEG"] == ("n01440764", 0, VAL, 0)
    labels = read_source(str(tmp_path)).labels
    assert labels == (Label("n01440764", words[0]), Label("n01443537", words[1]))


@pytest.mark.parametrize(
    "train",
    [
        [("n01440764_1.JPEG", b"", 0), ("n01440764_2.JPEG", b"", 1)],
        [("n01443537_1.JPEG", b"", 0), ("n01440764_2.JPEG", b"", 1)],
        [("n01440764_1.JPEG", b"", 0), ("n01443537_2.JPEG", b"", 1), ("x.JPEG", b"", 1)],
        [("n01440764_1.JPEG", b"", 0)],
        [(None, b"", 0), (None, b"", 1)],
    ],
    ids=["shared", "not ascending", "name without ID", "class without image", "no names"],
)
def test_names_of_images_that_are_not_unique_ids_are_ignored(tmp_path: Path, train: Rows) -> None:
    source_of(tmp_path, train, [("x", b"", 0)], ["crane, machine", "crane"])
    labels = read_source(str(tmp_path)).labels
    assert labels == (Label("0", "crane, machine"), Label("1", "crane"))


def test_numbers_as_wordnet_ids_are_in_the_order_of_class_indices(tmp_path: Path) -> None:
    words = [f"class {number}" for number in range(11)]
    rows = source_of(tmp_path, [("a", b"", 10), ("b", b"", 2)], [("c", b"", 9)], words)
    assert {key: row[:2] for key, row in rows.items()} == {
        "train/02/b": ("02", 2),
        "train/10/a": ("10", 10),
        "val/09/c": ("09", 9),
    }
    labels = read_source(str(tmp_path)).labels
    assert labels == tuple(Label(f"{number:02d}", words[number]) for number in range(11))
    assert labels == tuple(sorted(labels))


def test_integers_without_names_are_sorted_and_become_the_names(tmp_path: Path) -> None:
    rows = source_of(tmp_path, [("a", b"", 7), ("b", b"", 12)], [("c", b"", 100)])
    assert [row[:2] for row in rows.values()] == [("0", 0), ("1", 1), ("2", 2)]
    assert [label.name for label in read_source(str(tmp_path)).labels] == ["7", "12", "100"]


@pytest.mark.parametrize("kind", ["string", "large_string", "dictionary"])
def test_labels_can_be_strings(tmp_path: Path, kind: str) -> None:
    source_of(tmp_path, [("a", b"", "dog"), ("b", b"", "ant")], [("c", b"", "cat")])
    table = pq.read_table(tmp_path / TRAIN)
    words = table["label"]
    words = words.dictionary_encode() if kind == "dictionary" else words.cast(kind)
    pq.write_table(table.set_column(1, "label", words), tmp_path / TRAIN)
    source = read_source(str(tmp_path))
    assert source.labels == tuple(Label(name, name) for name in ("ant", "cat", "dog"))
    assert {key: row[1] for key, row in rows_of(source).items()} == {
        "train/ant/b": 0,
        "train/dog/a": 2,
        "val/cat/c": 1,
    }


def test_a_missing_or_repeated_name_is_replaced_by_file_and_row(tmp_path: Path) -> None:
    names = ["folder/a", None, "b", "other/b", "", "dir/", "line\nbreak", "ü"]
    train = [(name, b"", 0) for name in names]
    keys = source_of(tmp_path, [*train, ("a", b"", 1)], [("a", b"", 0)], NAMES)
    by_row = {row[3]: key for key, row in keys.items() if key.startswith("train")}
    stem = TRAIN.removesuffix(".parquet")
    assert by_row == {
        0: "train/cat/a",
        1: f"train/cat/{stem}-00000001",
        2: f"train/cat/{stem}-00000002",
        3: f"train/cat/{stem}-00000003",
        4: f"train/cat/{stem}-00000004",
        5: f"train/cat/{stem}-00000005",
        6: r"train/cat/line\x0abreak",
        7: "train/cat/ü",
        8: "train/dog/a",
    }
    assert "val/cat/a" in keys


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary()])
def test_the_image_column_can_be_bytes(tmp_path: Path, kind: pa.DataType) -> None:
    for name in (TRAIN, VAL):
        table = pa.table({"label": [0], "image": pa.array([b"x"], kind), "more": [1.5]})
        pq.write_table(table, tmp_path / name)
    assert len(rows_of(read_source(str(tmp_path)))) == 2


def test_files_written_by_duckdb_are_read(tmp_path: Path) -> None:
    for name in (TRAIN, VAL):
        duckdb.sql(
            "COPY (SELECT {'bytes': encode('image ' || i), 'path': i || '.png'} AS image, "
            "i % 2 AS label FROM range(5) AS t(i)) "
            f"TO '{tmp_path / name}' (FORMAT parquet, COMPRESSION zstd)"
        )
    rows = rows_of(read_source(str(tmp_path)))
    assert rows["train/1/3.png"] == ("1", 1, TRAIN, 3)
    assert len(rows) == 10


def set_column(path: Path, name: str, column: pa.Array | None) -> None:
    """Replace or (None) remove a column."""
    table = pq.read_table(path)
    number = table.schema.get_field_index(name)
    changed = table.remove_column(number)
    pq.write_table(changed if column is None else changed.add_column(number, name, column), path)


@pytest.mark.parametrize(
    ("column", "values", "expected"),
    [
        ("image", None, "has no column image (but label)"),
        ("label", None, "has no column label (but image)"),
        ("image", pa.array([1, 2, 3]), "column image is int64"),
        ("image", pa.array([{"path": "x"}] * 3), "column image is struct<path: string>"),
        ("image", pa.array([[b"x"]] * 3), "column image is list<"),
        ("label", pa.array([0.0, 1.0, 0.0]), "column label is double"),
        ("label", pa.array([0, None, 1]), "row 1 has label None, which is not a class"),
        ("label", pa.array([0, 1, -1]), "row 2 has label -1, which is not a class"),
        ("label", pa.array([0, 1, 2]), "row 2 has label 2, which is not a class"),
        ("label", pa.array([0, 1, 2**40]), "row 2 has label 1099511627776, which is not a class"),
        ("label", pa.array(["cat", "cat", None]), "row 2 has label None"),
        (
            "label",
            pa.array(["cat", "cat", "dog"]),
            "the type of its labels or its class names differ",
        ),
    ],
)
def test_missing_or_unsuitable_columns_raise_an_error(
    tmp_path: Path, column: str, values: pa.Array | None, expected: str
) -> None:
    source_of(tmp_path, [("a", b"", 0)] * 3, [("a", b"", 0)] * 3, NAMES)
    set_column(tmp_path / VAL, column, values)
    message = read_error(tmp_path)
    assert message.startswith(str(tmp_path / VAL))
    assert expected in message


def test_files_with_other_classes_raise_an_error(tmp_path: Path) -> None:
    source_of(tmp_path, [("a", b"", 0)], [("a", b"", 0)], NAMES)
    write_parquet_file(tmp_path / VAL, [("a", b"", 0)], ["cat", "cow"])
    assert f"its class names differ from those of {tmp_path / TRAIN}" in read_error(tmp_path)


@pytest.mark.parametrize("metadata", ["{", "[]", json.dumps({"info": {"features": {}}})])
def test_invalid_metadata_raises_an_error(tmp_path: Path, metadata: str) -> None:
    source_of(tmp_path, [("a", b"", 0)], [("a", b"", 0)], NAMES)
    table = pq.read_table(tmp_path / TRAIN).replace_schema_metadata({"huggingface": metadata})
    pq.write_table(table, tmp_path / TRAIN)
    assert "its metadata can't be read" in read_error(tmp_path)


@pytest.mark.parametrize("damage", ["empty", "truncated", "text"])
def test_a_file_that_is_not_parquet_raises_an_error(tmp_path: Path, damage: str) -> None:
    write_parquet(tmp_path)
    path = tmp_path / "data/train-00001-of-00002.parquet"
    content = {
        "empty": b"",
        "truncated": path.read_bytes()[:-9],
        "text": b"version https://git-lfs.github.com/spec/v1\n" * 3,
    }
    path.write_bytes(content[damage])
    expected = {
        "empty": "is empty, as after an interrupted download",
        "truncated": "not a readable Parquet file",
        "text": "is a pointer of Git LFS, not the file itself; run `git lfs pull`",
    }
    assert f"{path}: {expected[damage]}" in read_error(tmp_path)


def test_the_error_names_the_missing_split(tmp_path: Path) -> None:
    write_parquet_file(tmp_path / TRAIN, [("a", b"", 0)], NAMES)
    assert "but no validation-*.parquet" in read_error(tmp_path)
