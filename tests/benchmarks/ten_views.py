"""What the ten views of an image can share, and what that saves.

    python tests/benchmarks/ten_views.py --output ten_views.json

The five crops of an image, and those of its mirror image, begin 0, 16 or 32 pixels from the border:
multiples of conv1's stride, 4. So conv1 can be computed once for each image and its mirror image.
What the crops of a network of 2012 share is this:

- conv1 without its bias, of the raw pixels, at all positions but the last row and column of a crop
  that does not reach the image's border. There, conv1's window extends three pixels over the
  crop's end: over zeros in the crop, and over pixels in the image. These positions are computed
  again, with the eight rows or columns of the kernel that are inside the crop. The result is exact.
- Nothing after that. The mean image is subtracted in the crop's coordinates: the same pixel of the
  image has different inputs in two crops. As conv1 is linear, a map for each position corrects
  this, but normalization, ReLU and pooling are not linear.

So at best the ten views cost ten times the centre view less most of nine conv1. Even if conv1,
its normalization and pool1 took no time at all, they would cost ``bound``. ``crops`` computes ten
crops, ``shared`` shares conv1. Times are of the CPU and by the clock, the fastest of ``--rounds``
in turn; ``exported`` is the graph that is registered.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alexnet.model.classifier import CropClassifier
from alexnet.model.towers import AlexNet, Tower, gather, initialize
from alexnet.recipes import CROP_SIZE, IMAGE_SIZE, RECIPES
from alexnet.training.augment import BORDER, CENTRE_VIEW, VIEW_CORNERS, ten_crop

STRIDE, KERNEL, MAPS = 4, 11, 55
"""conv1's stride, its kernel's width and its positions per row of a crop."""
INSIDE = CROP_SIZE - STRIDE * (MAPS - 1)
"""Pixels of the last window that are inside the crop: 8 of 11."""


def shared_ten_views(classifier: CropClassifier, images: Tensor) -> Tensor:
    """The ten views' probabilities, with conv1 computed once for each image and its mirror image.

    Args:
        classifier: with all its parts on one device.
        images: (N, 256, 256, 3) uint8.

    Returns:
        (10, N, classes), in the order of ``ten_crop``.
    """
    towers: Sequence[Tower] = list(classifier.network.towers)  # type: ignore[arg-type]
    views: dict[tuple[bool, tuple[int, int]], Tensor] = {}
    for mirrored in (False, True):
        pixels = images.flip(2) if mirrored else images
        inputs = pixels.permute(0, 3, 1, 2).to(classifier.mean.dtype)
        sums = [_Conv1(tower, inputs, classifier.mean) for tower in towers]
        for top, left in VIEW_CORNERS:
            logits = after_conv1(classifier.network, [each.crop(top, left) for each in sums])
            # The mirror image of a crop is at the other side of the mirrored image.
            corner = (top, BORDER - left if mirrored else left)
            views[mirrored, corner] = logits.softmax(dim=1)
    return torch.stack([views[m, corner] for m in (False, True) for corner in VIEW_CORNERS])


class _Conv1:
    """conv1 of one tower for whole images."""

    def __init__(self, tower: Tower, inputs: Tensor, mean: Tensor) -> None:
        padding = (0, KERNEL - INSIDE, 0, KERNEL - INSIDE)
        self.weight = tower.conv1.weight
        self.inputs = F.pad(inputs, padding)
        self.sums = F.conv2d(self.inputs, self.weight, stride=STRIDE)  # (N, 48, 63, 63)
        of_mean = F.conv2d(F.pad(mean, padding)[None], self.weight, stride=STRIDE)
        assert tower.conv1.bias is not None
        self.correction = tower.conv1.bias[:, None, None] - of_mean[0]
        ends = (0, BORDER // 2)
        self.rows = {start: self._sums(start, None) for start in ends}
        self.columns = {start: self._sums(None, start) for start in ends}

    def _sums(self, top: int | None, left: int | None) -> Tensor:
        """The last row or column of the crops that begin at ``top`` or ``left``, or both."""
        x, weight = self.inputs, self.weight
        if top is not None:
            x, weight = x[:, :, top + CROP_SIZE - INSIDE : top + CROP_SIZE], weight[:, :, :INSIDE]
        if left is not None:
            x = x[..., left + CROP_SIZE - INSIDE : left + CROP_SIZE]
            weight = weight[..., :INSIDE]
        return F.conv2d(x, weight, stride=STRIDE)

    def crop(self, top: int, left: int) -> Tensor:
        """(N, 48, 55, 55): conv1 of the crop that begins there."""
        rows = slice(top // STRIDE, top // STRIDE + MAPS)
        columns = slice(left // STRIDE, left // STRIDE + MAPS)
        maps = self.sums[:, :, rows, columns] + self.correction
        last = self.correction[:, -1:], self.correction[..., -1:]
        if top < BORDER:
            maps[:, :, -1:] = self.rows[top][..., columns] + last[0]
        if left < BORDER:
            maps[..., -1:] = self.columns[left][:, :, rows] + last[1]
        if top < BORDER and left < BORDER:
            maps[:, :, -1:, -1:] = self._sums(top, left) + self.correction[:, -1:, -1:]
        return maps


def after_conv1(network: AlexNet, maps: Sequence[Tensor]) -> Tensor:
    """The logits from conv1's outputs, (N, 48, 55, 55) of each tower: the rest of the network."""
    towers: Sequence[Tower] = list(network.towers)  # type: ignore[arg-type]
    x = []
    for tower, conv1 in zip(towers, maps, strict=True):
        if tower.linear_norm1:
            pooled = F.relu(tower.pool(tower.norm1(conv1)))
        else:
            pooled = tower.pool(tower.norm1(F.relu(conv1)))
        x.append(tower.pool(tower.within2(tower.norm2(F.relu(tower.conv2(pooled))))))
    devices = [tower.device for tower in towers]
    x = [t.conv3_to_pool5(maps) for t, maps in zip(towers, gather(x, devices), strict=True)]
    x = [t.hidden6(units) for t, units in zip(towers, gather(x, devices), strict=True)]
    x = [t.hidden7(units) for t, units in zip(towers, gather(x, devices), strict=True)]
    logits: Tensor = network.fc8(*gather(x, devices[:1]))
    return logits


def before_conv2(network: AlexNet, crops: Tensor) -> None:
    """conv1, its normalization and pool1 of all towers: the layers whose share is measured."""
    for tower in network.towers:
        assert isinstance(tower, Tower)
        tower.pool(tower.norm1(tower.conv1(F.pad(crops, (0, 3, 0, 3)))))


def fastest(tasks: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, dict[str, float]]:
    """CPU and clock seconds of the tasks, in turn; the fastest round of each."""
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in tasks}
    for _ in range(rounds + 1):
        for name, task in tasks.items():
            cpu, clock = time.process_time(), time.perf_counter()
            task()
            seconds[name].append((time.process_time() - cpu, time.perf_counter() - clock))
    return {
        name: {"cpu": min(cpu for cpu, _ in each[1:]), "clock": min(c for _, c in each[1:])}
        for name, each in seconds.items()
    }


@torch.no_grad()
def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--recipe", choices=RECIPES, default="source145", help="[source145]")
    parser.add_argument("--images", type=int, default=16, help="in a batch [16]")
    parser.add_argument("--threads", type=int, default=2, help="[2]")
    parser.add_argument("--rounds", type=int, default=3, help="[3]")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    recipe = RECIPES[options.recipe]
    network = AlexNet(recipe, 1000)
    initialize(network, recipe, 0)
    random = torch.Generator().manual_seed(0)
    mean = 100 + 50 * torch.rand(3, CROP_SIZE, CROP_SIZE, generator=random)
    classifier = CropClassifier(network, mean)
    shape = (options.images, IMAGE_SIZE, IMAGE_SIZE, 3)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=random)
    views = ten_crop(images)
    centre = views[CENTRE_VIEW]
    batch = {0: torch.export.Dim("crops", min=1, max=4096)}
    exported: nn.Module = torch.export.export(
        classifier, (centre[:2].clone(),), dynamic_shapes=(batch,)
    ).module()
    plain = torch.stack([classifier(view) for view in views])
    error = float((shared_ten_views(classifier, images) - plain).abs().max() / plain.max())
    crops = centre.permute(0, 3, 1, 2) - mean
    load = os.getloadavg()
    times = fastest(
        {
            "centre view": lambda: classifier(centre),
            "centre view, exported": lambda: exported(centre),
            "conv1 to pool1": lambda: before_conv2(network, crops),
            "crops": lambda: [classifier(view) for view in views],
            "crops, exported": lambda: [exported(view) for view in views],
            "shared": lambda: shared_ten_views(classifier, images),
        },
        options.rounds,
    )
    unit = {kind: times["centre view"][kind] for kind in ("cpu", "clock")}
    ratios = {
        name: {kind: round(each[kind] / unit[kind], 2) for kind in unit}
        for name, each in times.items()
    }
    share = statistics.mean(ratios["conv1 to pool1"].values())
    value = {
        "settings": vars(options) | {"output": str(options.output)},
        "load": load,
        "largest difference / largest probability": error,
        "seconds": times,
        "times the centre view": ratios,
        "bound": round(10 * (1 - share), 2),
    }
    print(json.dumps(value, indent=2))
    options.output.write_text(json.dumps(value, indent=2) + "\n")


if __name__ == "__main__":
    main()
