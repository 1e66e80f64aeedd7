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
def chunks_of_three(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(md5, "CHUNK_BYTES", 3)


@pytest.mark.parametrize("content", [b"", b"12", b"123", b"12345678"])
def test_the_right_md5_raises_no_error(
    tmp_path: Path, chunks_of_three: None, content: bytes
) -> None:
    path = tmp_path / "archive.tar"
    path.write_bytes(content)
    progress: list[tuple[int, int]] = []
    verify(str(path), hashlib.md5(content).hexdigest(), lambda *now: progress.append(now))
    size = len(content)
    assert progress == [(min(end, size), size) for end in range(3, size + 3, 3)]
    verify(str(path), hashlib.md5(content).hexdigest().upper())


def test_the_error_names_both_md5_sums(tmp_path: Path) -> None:
    path = tmp_path / "archive.tar"
    path.write_bytes(b"content")
    right, wrong = hashlib.md5(b"content").hexdigest(), hashlib.md5(b"other").hexdigest()
    path.write_bytes(b"other")
    with pytest.raises(UserError) as caught:
        verify(str(path), right)
    message = str(caught.value)
    assert message.startswith(f"{path}: md5 is {wrong}, not {right};")
    assert "download it again" in message


def test_the_error_names_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"{tmp_path}/none: can't be read"):
        verify(str(tmp_path / "none"), "0" * 32)


def test_memory_does_not_depend_on_the_size_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(md5, "CHUNK_BYTES", 2**16)
    path = tmp_path / "large"
    with path.open("wb") as file:
        file.truncate(2**24)
    expected = hashlib.md5(bytes(2**24)).hexdigest()
    tracemalloc.start()
    verify(str(path), expected)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**20


def test_the_official_md5_sums_are_those_of_torchvision() -> None:
    assert dict(imagenet.ARCHIVE_META.values()) == dict(OFFICIAL)
