"""The shared conv1 of ``tests/benchmarks/ten_views.py`` equals that of ten crops."""

import runpy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from factories import narrow_network

from alexnet.model.classifier import CropClassifier, view_probabilities
from alexnet.recipes import PAPER, SOURCE145, Recipe, ablate
from alexnet.training.augment import ten_crop

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "ten_views.py"


@pytest.mark.slow
@pytest.mark.parametrize(
    "recipe",
    [SOURCE145, PAPER, replace(ablate(SOURCE145, towers=1), name="one tower")],
    ids=lambda recipe: recipe.name,
)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@torch.no_grad()
def test_ten_views_with_a_shared_conv1(
    recipe: Recipe, dtype: torch.dtype, tolerance: float
) -> None:
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (2, 256, 256, 3), dtype=torch.uint8, generator=generator)
    mean = 100 + 60 * torch.rand((3, 224, 224), generator=generator)
    network = narrow_network(recipe)
    network.fc8.weight.mul_(30)  # So that the views differ much more than by rounding.
    classifier = CropClassifier(network, mean).to(dtype)
    shared = runpy.run_path(str(BENCHMARK))["shared_ten_views"](classifier, images)
    plain = view_probabilities({"plain": classifier}, ten_crop(images))
    assert (plain.std(dim=0) > 1e-4).any(), "the views differ"
    torch.testing.assert_close(shared, plain, rtol=0, atol=tolerance)
