"""The same training as a plain PyTorch and torchvision script, for comparison.

    python tests/benchmarks/peer_training.py FOLDER --epochs 2 --drop 1 --seed 0

``FOLDER`` contains ``{train,val}/<class>/*.jpg`` of 256x256. The script uses one column with
groups, torch's normalization and autograd, and ``DataLoader(ImageFolder)``. It imports nothing from
the project. The hyperparameters are those of the recipe ``source145``. Only batch size and learning
rate are options.
"""

import argparse
import json
import time

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms.functional import pil_to_tensor

LARGE_STD = ("conv3", "conv4", "conv5")
ONES = ("conv2", "conv4", "conv5", "fc6", "fc7")


class Net(nn.Module):
    def __init__(self, classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 96, 11, stride=4)
        self.conv2 = nn.Conv2d(96, 256, 5, padding=2, groups=2)
        self.conv3 = nn.Conv2d(256, 384, 3, padding=1)
        self.conv4 = nn.Conv2d(384, 384, 3, padding=1, groups=2)
        self.conv5 = nn.Conv2d(384, 256, 3, padding=1, groups=2)
        self.fc6 = nn.Linear(256 * 36, 4096)
        self.fc7 = nn.Linear(4096, 4096)
        self.fc8 = nn.Linear(4096, classes)
        for name, parameter in self.named_parameters():
            layer, kind = name.split(".")
            if kind == "weight":
                nn.init.normal_(parameter, 0, 0.03 if layer in LARGE_STD else 0.01)
            else:
                nn.init.constant_(parameter, float(layer in ONES))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = cross_map(self.conv1(F.pad(x, (0, 3, 0, 3))))
        x = F.relu(F.max_pool2d(x, 3, 2))
        x = within_map(cross_map(F.relu(self.conv2(x))))
        x = F.max_pool2d(x, 3, 2)
        x = F.relu(self.conv4(F.relu(self.conv3(x))))
        x = F.max_pool2d(F.relu(self.conv5(x)), 3, 2).flatten(1)
        for layer in (self.fc6, self.fc7):
            x = F.relu(layer(x))
            x = x * (torch.rand_like(x) < 0.5) if self.training else x * 0.5
        return self.fc8(x)  # type: ignore[no-any-return]


def cross_map(x: torch.Tensor) -> torch.Tensor:
    count, maps, height, width = x.shape
    x = x.reshape(count * 2, maps // 2, height, width)
    x = F.local_response_norm(x, 5, 1e-4, 0.75, 2.0)
    return x.reshape(count, maps, height, width)


def within_map(x: torch.Tensor) -> torch.Tensor:
    return x / (1 + 0.001 * F.avg_pool2d(x * x, 5, 1, 2)) ** 0.75


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder")
    for name, default in (("epochs", 2), ("drop", 1), ("seed", 0), ("batch_size", 16)):
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=default)
    parser.add_argument("--learning-rate", type=float, default=0.002)
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    torch.set_num_threads(2)
    train = ImageFolder(f"{options.folder}/train", pil_to_tensor)
    val = ImageFolder(f"{options.folder}/val", pil_to_tensor)
    mean, axes = statistics(train)
    mean = mean[:, 16:240, 16:240]
    net = Net(len(train.classes))
    velocity = {name: torch.zeros_like(p) for name, p in net.named_parameters()}
    started = time.monotonic()
    for epoch in range(options.epochs):
        rate = options.learning_rate * (0.1 if epoch >= options.drop else 1.0)
        net.train()
        for images, labels in DataLoader(train, options.batch_size, shuffle=True, num_workers=2):
            # In 2012, 32 consecutive images had the same crop and flip.
            top, left = (int(torch.randint(0, 33, ())) for _ in range(2))
            x = images[:, :, top : top + 224, left : left + 224].float() - mean
            if torch.rand(()) < 0.5:
                x = x.flip(3)
            colours = (torch.randn(len(x), 3) * 0.1) @ axes
            x = (x + colours[:, :, None, None]) / 1.1
            loss = F.cross_entropy(net(x), labels)
            net.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            with torch.no_grad():
                for name, parameter in net.named_parameters():
                    v, gradient = velocity[name], parameter.grad
                    assert gradient is not None
                    if name.endswith("bias"):
                        v.mul_(0.9).sub_(gradient, alpha=2 * options.learning_rate)
                    else:
                        v.mul_(0.9).sub_(parameter, alpha=0.0005 * rate)
                        v.sub_(gradient, alpha=rate)
                    parameter.add_(v)
        net.eval()
        top1_wrong = top5_wrong = 0
        with torch.no_grad():
            for images, labels in DataLoader(val, 64, num_workers=2):
                logits = net(images[:, :, 16:240, 16:240].float() - mean)
                correct = logits.topk(min(5, logits.shape[1])).indices == labels[:, None]
                top1_wrong += int((~correct[:, 0]).sum())
                top5_wrong += int((~correct.any(1)).sum())
        errors = {
            "top1_error": 100 * top1_wrong / len(val),
            "top5_error": 100 * top5_wrong / len(val),
        }
        seconds = time.monotonic() - started
        print(json.dumps({"epoch": epoch + 1, **errors, "seconds": seconds}), flush=True)


def statistics(data: ImageFolder) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean image, and the principal components of RGB times their standard deviations."""
    total = torch.zeros(3, 256, 256, dtype=torch.float64)
    second = torch.zeros(3, 3, dtype=torch.float64)
    for images, _ in DataLoader(data, 64, num_workers=2):
        x = images.double()
        total += x.sum(0)
        flat = x.transpose(0, 1).flatten(1)
        second += flat @ flat.T
    mean = total / len(data)
    pixels = len(data) * 256 * 256
    rgb = mean.mean((1, 2))
    values, vectors = np.linalg.eigh((second / pixels - torch.outer(rgb, rgb)).numpy())
    return mean.float(), torch.from_numpy((vectors * np.sqrt(values)).T).float()


if __name__ == "__main__":
    main()
