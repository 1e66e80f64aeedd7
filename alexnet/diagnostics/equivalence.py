"""Whether two towers on some devices compute what one column on one device computes."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from alexnet.model.grouped import GroupedAlexNet
from alexnet.model.placement import place_towers, spread, to_single
from alexnet.model.towers import AlexNet
from alexnet.recipes import CROP_SIZE, Recipe

TOLERANCE = 1e-3
"""Largest difference allowed, as a part of what is expected. Another order of the same sums makes
one of 1e-6 to 1e-4; a lost, late or exchanged copy makes one of about 1."""

COMPARED = 8
"""Images in the comparison."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Norms of differences from one column on one device, relative to what it says."""

    logits: float
    gradients: float
    """Of the layer where it is largest."""
    layer: str
    """That layer."""

    @property
    def passed(self) -> bool:
        """Whether both are within the tolerance; not if one is no number."""
        return self.logits <= TOLERANCE and self.gradients <= TOLERANCE


def compare(recipe: Recipe, devices: Sequence[torch.device], classes: int) -> Comparison:
    """Logits and gradients of two towers on some devices against one column on the first.

    The column is written independently of the towers (``export``). Dropout is left out on both
    sides, since every device draws masks of its own, and so is TF32.
    """
    plain = replace(recipe, dropout=0.0)
    network = AlexNet(plain, classes)
    he_init(network)
    weights = to_single(network.state_dict())
    column = GroupedAlexNet(asdict(plain), classes)
    column.load_state_dict(weights | {"centre.mean": torch.zeros(3, CROP_SIZE, CROP_SIZE)})
    place_towers(network, devices)
    column.to(devices[0])
    generator = torch.Generator().manual_seed(1)
    patches = torch.randn(COMPARED, 3, CROP_SIZE, CROP_SIZE, generator=generator).mul_(60)
    labels = torch.arange(COMPARED) % classes
    inputs = [patches.to(device) for device in dict.fromkeys(spread(devices, recipe.towers))]
    results = []
    with _without_tf32():
        for model, shown in ((network, inputs), (column, inputs[:1])):
            logits = model(*shown)
            F.cross_entropy(logits, labels.to(logits.device)).backward()  # type: ignore[no-untyped-call]
            gradients = {
                name: torch.zeros_like(p) if p.grad is None else p.grad
                for name, p in model.named_parameters()
            }
            results.append((logits.detach(), gradients))
    (found, grads), (expected, expected_grads) = results
    single = to_single(grads)
    assert single.keys() == expected_grads.keys() == weights.keys()
    worst = {name: _difference(single[name], expected_grads[name]) for name in single}
    layer = max(worst, key=lambda name: (worst[name] != worst[name], worst[name]))
    return Comparison(logits=_difference(found, expected), gradients=worst[layer], layer=layer)


def he_init(network: AlexNet) -> None:
    """Weights under which every layer passes the image on; 2012's first ones hardly do."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            scale = (2 / parameter[0].numel()) ** 0.5 if parameter.dim() > 1 else 0.1
            parameter.normal_(0, scale, generator=generator)


def _difference(found: Tensor, expected: Tensor) -> float:
    found, expected = found.cpu().double(), expected.cpu().double()
    return float((found - expected).norm() / expected.norm())


@contextmanager
def _without_tf32() -> Iterator[None]:
    """Full float32 in products of matrices and in convolutions."""
    products, convolutions = torch.backends.cuda.matmul, torch.backends.cudnn
    before = products.allow_tf32, convolutions.allow_tf32
    products.allow_tf32 = convolutions.allow_tf32 = False
    try:
        yield
    finally:
        products.allow_tf32, convolutions.allow_tf32 = before
