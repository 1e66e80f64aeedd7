"""JPEGs decoded by a GPU, with fakes of torchvision's decoder and CUDA's streams."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torchvision.io
from factories import loader_of
from torch import Tensor

from alexnet.errors import CorruptShardError, UserError
from alexnet.shards.codec import decode_into
from alexnet.shards.manifest import Manifest
from alexnet.shards.row_groups import RowGroupData, RowGroupReader
from pipelines.settings import TrainSettings
from pipelines.training.state import decoding_device

GPU = torch.device("cuda", 1)
CPU = torch.device("cpu")
Decoder = Callable[[list[Tensor], Any, torch.device], list[Tensor]]


def decode(stored: list[Tensor], mode: Any, device: torch.device) -> list[Tensor]:
    """Decode on the CPU, and change each pixel by one, as another decoder does."""
    assert mode == torchvision.io.ImageReadMode.RGB
    assert device == GPU
    images = []
    for data in stored:
        pixels = np.empty((256, 256, 3), np.uint8)
        try:
            decode_into(data.numpy(), pixels)
        except ValueError as error:
            raise RuntimeError(f"nvjpeg failed: {error}\nat some line") from error
        images.append(torch.from_numpy(pixels ^ 1).permute(2, 0, 1))
    return images


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[torch.device]:
    """The devices of the streams that are waited for."""
    waited: list[torch.device] = []

    def stream(device: torch.device) -> SimpleNamespace:
        return SimpleNamespace(synchronize=lambda: waited.append(device))

    monkeypatch.setattr(torch.cuda, "Stream", stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda _: nullcontext())
    monkeypatch.setattr(torchvision.io, "decode_jpeg", decode)
    return waited


def test_the_loader_with_a_gpu_yields_the_same_rows(
    dataset: Manifest, waits: list[torch.device]
) -> None:
    on_cpu = list(loader_of(dataset).epoch(2))
    on_gpu = list(replace(loader_of(dataset), decode_on=GPU).epoch(2))
    assert waits == [GPU] * len(on_gpu), "each batch is decoded at once"
    for expected, batch in zip(on_cpu, on_gpu, strict=True):
        assert torch.equal(batch.images ^ 1, expected.images)
        assert torch.equal(batch.labels, expected.labels)


def test_a_damaged_image_names_its_shard(
    dataset: Manifest, waits: list[torch.device], monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut(*group: Any, **how: Any) -> RowGroupData:
        data = whole(*group, **how)
        return data._replace(data=np.zeros_like(data.data))

    whole = RowGroupReader.read
    monkeypatch.setattr(RowGroupReader, "read", cut)
    with pytest.raises(CorruptShardError, match=r"part-\d+.parquet.*can't be decoded") as caught:
        next(replace(loader_of(dataset), decode_on=GPU).epoch(0))
    assert "\n" not in str(caught.value)


def test_where_a_gpu_can_not_decode_is_one_line(
    dataset: Manifest, waits: list[torch.device], monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = TrainSettings(decode_on="gpu")
    assert decoding_device(TrainSettings(), dataset, GPU) is None
    assert decoding_device(wanted, dataset, GPU) == GPU
    with pytest.raises(UserError, match=r"^--decode-on gpu: .* runs on the cpu.* --device cuda$"):
        decoding_device(wanted, dataset, CPU)
    raw = replace(dataset, settings={"encoding": "raw"})
    with pytest.raises(UserError, match=r"^--decode-on gpu: .* raw images.* --decode-on cpu$"):
        decoding_device(wanted, raw, GPU)

    def without_nvjpeg(*_: Any) -> list[Tensor]:
        raise RuntimeError("Compile torchvision with NVJPEG support")

    monkeypatch.setattr(torchvision.io, "decode_jpeg", without_nvjpeg)
    with pytest.raises(UserError, match=r"^--decode-on gpu: .*NVJPEG.* --decode-on cpu$"):
        decoding_device(wanted, dataset, GPU)
