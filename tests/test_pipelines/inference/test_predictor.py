"""Evaluation computes what the validation during training does, in the same precision."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from factories import loader_of, narrow_network, random_crops, train_context
from torch import Tensor, nn

from alexnet.diagnostics.equivalence import he_init
from alexnet.metrics import LossAndErrors
from alexnet.model.classifier import CropClassifier
from alexnet.model.exported import as_function
from alexnet.model.precision import Precision
from alexnet.recipes import SOURCE145
from alexnet.shards.codec import read_images
from alexnet.shards.manifest import Manifest
from alexnet.training.augment import CENTRE_VIEW
from alexnet.training.validation import validate
from pipelines.inference.predictor import Predictor

PRECISIONS: tuple[Precision, ...] = ("float32", "tf32", "bf16")


@pytest.fixture
def _restored_flags() -> Iterator[None]:
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    yield
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


@pytest.mark.slow
@pytest.mark.usefixtures("_restored_flags")
def test_the_centre_view_is_that_of_the_validation(dataset: Manifest) -> None:
    network = narrow_network(SOURCE145)
    he_init(network)
    context = train_context(dataset, SOURCE145)
    classifier = CropClassifier(network, context.means[0])
    batch = torch.export.Dim("batch")
    exported = torch.export.export(
        classifier, (random_crops(2),), dynamic_shapes=({0: batch},)
    ).module()
    predictor = Predictor({"m": exported}, torch.device("cpu"))
    losses = []
    for precision in PRECISIONS[::2]:
        evaluated = LossAndErrors()
        for group in dataset.row_groups("val"):
            with ThreadPoolExecutor(1) as decoders:
                rows, images = read_images(group, ["label"], decoders)
            centre = predictor.views(images, {"m": precision})[CENTRE_VIEW]
            evaluated.count(centre, rows["label"].to_numpy().astype(np.int64))
        validated = validate(
            network, loader_of(dataset), replace(context, bf16=precision == "bf16")
        )
        assert evaluated == validated
        losses.append(validated.loss)
    assert losses[0] != losses[1]


class Flags(nn.Module):
    """Records whether TF32 is allowed when it computes."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[bool, bool]] = []

    def forward(self, crops: Tensor) -> Tensor:
        self.seen.append((torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32))
        return torch.ones(len(crops), 2) / 2


@pytest.mark.usefixtures("_restored_flags")
@pytest.mark.parametrize("precision", PRECISIONS[:2])
def test_each_model_computes_with_its_own_tf32_flags(precision: Precision) -> None:
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = precision == "float32"
    models = {"one": Flags(), "other": Flags()}
    others: Precision = "float32" if precision == "tf32" else "tf32"
    precisions = {"one": precision, "other": others}
    images = np.zeros((1, 256, 256, 3), np.uint8)
    Predictor(models, torch.device("cpu")).views(images, precisions)
    is_tf32 = precision == "tf32"
    assert models["one"].seen == [(is_tf32, is_tf32)] * 10
    assert models["other"].seen == [(not is_tf32, not is_tf32)] * 10
    function = as_function(models["one"], "one", None, precision=precision)
    function(random_crops(1))
    assert models["one"].seen[-1] == (is_tf32, is_tf32)
