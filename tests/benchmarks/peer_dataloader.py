"""torchvision's ImageFolder in a DataLoader with two workers, for comparison.

python tests/benchmarks/peer_dataloader.py FILES EPOCHS
"""

import sys
from collections.abc import Iterator

import torch
from ingest import BATCH, COVARIANCE, measure
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder
from torchvision.transforms.functional import pil_to_tensor

from alexnet.recipes import PAPER
from alexnet.training.augment import pca_axes


class ColourNoise:
    """To float, minus the mean, plus noise along the principal components."""

    def __init__(self) -> None:
        self.axes = torch.from_numpy(pca_axes(PAPER, COVARIANCE)).float()
        self.mean = torch.full((3, 224, 224), 120.0)

    def __call__(self, image: Image.Image) -> Tensor:
        colour = torch.randn(3) * PAPER.colour_noise_std @ self.axes
        pixels: Tensor = pil_to_tensor(image).float()
        return pixels.sub_(self.mean).add_(colour[:, None, None])


def main(files: str, epochs: int) -> None:
    change = transforms.Compose(
        [transforms.RandomCrop(224), transforms.RandomHorizontalFlip(), ColourNoise()]
    )
    loader: DataLoader[tuple[Tensor, Tensor]] = DataLoader(
        ImageFolder(files, change),
        batch_size=BATCH,
        shuffle=True,
        num_workers=2,
        persistent_workers=True,
    )

    def epoch(_: int) -> Iterator[int]:
        for images, _labels in loader:
            assert (images.shape[1:], images.dtype) == ((3, 224, 224), torch.float32)
            yield len(images)

    measure(epoch, epochs)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
