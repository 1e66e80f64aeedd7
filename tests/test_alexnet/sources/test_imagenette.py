"""Imagenette: unpacked as a whole or not at all, and incomplete folders are refused."""

from pathlib import Path

import pytest
import torchvision

from alexnet.errors import DownloadError, UserError
from alexnet.sources import imagenette
from pipelines import preprocess
from pipelines.preprocessing.source import source_uri
from pipelines.settings import PreprocessCommandSettings, PreprocessSettings

IMAGES = {"train": 3, "val": 2}


def unpack(folder: Path, images: dict[str, int]) -> None:
    for split, count in images.items():
        for number in range(count):
            path = folder / split / f"n0{number % 2}" / f"{number}.JPEG"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"an image")


class Download:
    """Stands for torchvision's class: it keeps a folder that exists, and unpacks file by file."""

    def __init__(self) -> None:
        self.calls = 0
        self.interrupted: BaseException | None = None
        self.states: list[str | None] = []
        """In words, before the download, after it, and after the unpacking."""

    def __call__(self, root: str, **_: object) -> None:
        self.calls += 1
        parent = str(Path(root).parent)
        self.states = [imagenette.download_state(parent)]
        Path(root, imagenette.ARCHIVE).write_bytes(b"an archive")
        self.states.append(imagenette.download_state(parent))
        folder = Path(root, imagenette.FOLDER)
        if folder.exists():
            return
        unpack(folder, {"train": 3, "val": 1} if self.interrupted else IMAGES)
        self.states.append(imagenette.download_state(parent))
        if self.interrupted:
            raise self.interrupted


@pytest.fixture
def download(monkeypatch: pytest.MonkeyPatch) -> Download:
    download = Download()
    monkeypatch.setattr(torchvision.datasets, "Imagenette", download)
    monkeypatch.setattr(imagenette, "IMAGES", IMAGES)
    return download


def files_below(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_it_is_downloaded_once(download: Download, tmp_path: Path) -> None:
    started: list[bool] = []
    for _ in range(2):
        path = imagenette.fetch(str(tmp_path / "work"), lambda: started.append(True))
        assert path == str(tmp_path / "work" / "imagenette2")
    assert (download.calls, started) == (1, [True])
    assert len(files_below(tmp_path / "work")) == 5, "the images and no temporary file"


def test_the_state_of_a_download_in_words(download: Download, tmp_path: Path) -> None:
    imagenette.fetch(str(tmp_path))
    assert download.states == [
        None,
        "downloading Imagenette, 0.00 of 1.6 GB",
        "unpacking Imagenette",
    ]
    assert imagenette.download_state(str(tmp_path)) is None


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError("the disk\nis full")])
def test_an_interrupted_unpacking_is_repeated(
    download: Download, tmp_path: Path, error: BaseException
) -> None:
    download.interrupted = error
    expected = DownloadError if isinstance(error, OSError) else KeyboardInterrupt
    with pytest.raises(expected) as caught:
        imagenette.fetch(str(tmp_path))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "imagenette2").exists()
    download.interrupted = None
    assert imagenette.fetch(str(tmp_path)) == str(tmp_path / "imagenette2")
    assert len(files_below(tmp_path)) == 5


@pytest.mark.parametrize("images", [{"train": 3}, {"train": 3, "val": 1}, {"train": 2, "val": 2}])
@pytest.mark.parametrize("given", [False, True])
def test_an_incomplete_folder_is_refused(
    download: Download, tmp_path: Path, images: dict[str, int], given: bool
) -> None:
    folder = tmp_path / "imagenette2"
    unpack(folder, images)
    (folder / "val" / ".hidden").mkdir(parents=True, exist_ok=True)
    (folder / "val" / ".hidden" / "x").write_bytes(b"")
    source = {"source": str(folder)} if given else {}
    values = {"workdir": str(tmp_path), "preset": "imagenette", "dry_run": True} | source
    with pytest.raises(UserError) as caught:
        preprocess.command(PreprocessCommandSettings.model_validate(values))
    split, count, of = ("val", images.get("val", 0), 2) if images["train"] == 3 else ("train", 2, 3)
    assert str(caught.value).startswith(f"{folder}: {split}/ contains {count} of Imagenette's {of}")
    assert "\n" not in str(caught.value)
    assert len(files_below(folder)) == sum(images.values()) + 1, "nothing is lost"
    assert download.calls == 0


@pytest.mark.parametrize("name", ["imagenette2", "imagenette2-160", "mine"])
def test_a_complete_or_another_folder_is_accepted(
    download: Download, tmp_path: Path, name: str
) -> None:
    folder = tmp_path / name
    unpack(folder, IMAGES if name.startswith("imagenette") else {"train": 1, "val": 1})
    settings = PreprocessSettings(source=str(folder), workdir=str(tmp_path / "work"))
    assert source_uri(settings) == str(folder)


def test_the_numbers_are_those_of_the_release() -> None:
    """https://huggingface.co/datasets/frgfm/imagenette, whose full size is this archive."""
    assert imagenette.IMAGES == {"train": 9469, "val": 3925}
