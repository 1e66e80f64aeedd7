"""md5 of large files."""

import hashlib
import tracemalloc
from pathlib import Path

import pytest
from torchvision.datasets import imagenet

from alexnet.errors import UserError
from alexnet.sources import md5
from alexnet.sources.md5 import OFFICIAL, verify


@pytest.fixture
def pieces_of_three(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(md5, "_CHUNK_BYTES", 3)


@pytest.mark.parametrize("content", [b"", b"12", b"123", b"12345678"])
def test_the_right_sum_passes(tmp_path: Path, pieces_of_three: None, content: bytes) -> None:
    path = tmp_path / "archive.tar"
    path.write_bytes(content)
    seen: list[tuple[int, int]] = []
    verify(str(path), hashlib.md5(content).hexdigest(), lambda *now: seen.append(now))
    size = len(content)
    assert seen == [(min(end, size), size) for end in range(3, size + 3, 3)]
    verify(str(path), hashlib.md5(content).hexdigest().upper())


def test_another_sum_is_named(tmp_path: Path) -> None:
    path = tmp_path / "archive.tar"
    path.write_bytes(b"content")
    right, wrong = hashlib.md5(b"content").hexdigest(), hashlib.md5(b"other").hexdigest()
    path.write_bytes(b"other")
    with pytest.raises(UserError) as caught:
        verify(str(path), right)
    message = str(caught.value)
    assert message.startswith(f"{path}: md5 is {wrong}, not {right};")
    assert "download it again" in message


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"{tmp_path}/none: can't be read"):
        verify(str(tmp_path / "none"), "0" * 32)


def test_memory_does_not_grow_with_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(md5, "_CHUNK_BYTES", 2**16)
    path = tmp_path / "large"
    with path.open("wb") as file:
        file.truncate(2**24)
    expected = hashlib.md5(bytes(2**24)).hexdigest()
    tracemalloc.start()
    verify(str(path), expected)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**20


def test_the_official_sums_are_those_that_torchvision_knows() -> None:
    assert dict(imagenet.ARCHIVE_META.values()) == dict(OFFICIAL)
