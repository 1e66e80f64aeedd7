"""Images as clients of a served model send them → the best classes of each image."""

import base64
import binascii
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from alexnet.errors import UserError
from alexnet.metrics import top_labels
from alexnet.recipes import CROP_SIZE
from alexnet.shards.decode import Decoded, decode
from alexnet.shards.resize import square_of_pixels
from alexnet.training.augment import evaluation_views

BATCH_CROPS = 160
"""Crops that are computed at once: 16 images with ten views."""


class Answer(NamedTuple):
    """The best classes of one image, best first."""

    labels: list[int]
    """Indices of the classes."""
    wnids: list[str]
    names: list[str]
    probabilities: list[float]


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageClassifier:
    """A crop classifier with the names of its classes."""

    model: Callable[[Tensor], Tensor]
    """(N, 224, 224, 3) uint8 → (N, classes) probabilities, on ``device``."""
    classes: Sequence[tuple[str, str]]
    """Wnid and name, by index."""
    device: torch.device

    @torch.no_grad()
    def classify(self, images: Sequence[object], *, views: int, top_k: int) -> list[Answer]:
        """The best classes of each image.

        Args:
            images: each the bytes of an image file, the same as base64 text (also as a ``data:``
                URL), or an array (height, width, 3) of levels 0 to 255. Files and arrays are
                resized and cropped as the training images were, photographs are turned as their
                EXIF says; an array of 224x224 is used as it is, as its only view.
            views: 10, or 1: the centre.
            top_k: classes of each answer; at most as many as there are.

        Raises:
            UserError: an image can't be used (the message has its position, from 0), or ``views``
                or ``top_k`` are out of range.
        """
        if views not in (1, 10):
            raise UserError(f"views is {views}; it must be 10 or 1")
        if top_k < 1:
            raise UserError(f"top_k is {top_k}; it must be 1 or more")
        return [
            self._answer(probabilities, top_k)
            for batch in _batches(_crops(image, at, views) for at, image in enumerate(images))
            for probabilities in self._means(batch)
        ]

    def _means(self, batch: Sequence[Tensor]) -> Iterator[NDArray[np.float32]]:
        """Mean probabilities (classes,) over the views of each image."""
        outputs = self.model(torch.cat(list(batch)).to(self.device)).float().cpu()
        for views in torch.split(outputs, [len(crops) for crops in batch]):
            yield views.mean(dim=0).numpy()

    def _answer(self, probabilities: NDArray[np.float32], top_k: int) -> Answer:
        labels = top_labels(probabilities[None], top_k)[0].tolist()
        return Answer(
            labels,
            [self.classes[label][0] for label in labels],
            [self.classes[label][1] for label in labels],
            probabilities[labels].tolist(),
        )


def _batches(crops: Iterator[Tensor]) -> Iterator[list[Tensor]]:
    """The views of some images at a time, in order."""
    batch: list[Tensor] = []
    for views in crops:
        batch.append(views)
        if sum(map(len, batch)) >= BATCH_CROPS:
            yield batch
            batch = []
    if batch:
        yield batch


def _crops(image: object, position: int, views: int) -> Tensor:
    """(V, 224, 224, 3) uint8, the views of an image."""
    try:
        pixels = _pixels(image)
    except ValueError as error:
        raise UserError(f"image {position}: {error}") from error
    if pixels.shape[:2] == (CROP_SIZE, CROP_SIZE):
        return torch.from_numpy(pixels)[None]
    return evaluation_views(torch.from_numpy(pixels)[None], views)[:, 0]


def _pixels(image: object) -> NDArray[np.uint8]:
    """(256, 256, 3), or (224, 224, 3) if that was given."""
    if isinstance(image, str):
        image = _decode_base64(image)
    if isinstance(image, bytes | bytearray | memoryview):
        decoded = decode(bytes(image), upright=True)
        if isinstance(decoded, Decoded):
            return decoded.pixels
        raise ValueError(f"{decoded.reason} ({decoded.detail})")
    return _array_pixels(image)  # type: ignore[arg-type]


def _decode_base64(text: str) -> bytes:
    if text.startswith("data:"):
        text = text.partition(",")[2]
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except binascii.Error as error:
        raise ValueError(
            f"the text is not base64 ({error}); send the bytes of an image file as base64"
        ) from error


def _array_pixels(image: ArrayLike) -> NDArray[np.uint8]:
    try:
        array = np.asarray(image)
        with np.errstate(invalid="ignore"):  # NaN.
            levels = array.astype(np.uint8)
        is_exact = bool((levels == array).all())
    except (TypeError, ValueError, OverflowError):
        raise ValueError("neither bytes, base64 text nor an array of one shape") from None
    if array.ndim != 3 or array.shape[2] != 3 or not array.size:
        raise ValueError(f"an array of shape {array.shape}; it must be (height, width, 3)")
    if not is_exact:
        raise ValueError("an array with other values than the levels 0 to 255")
    if levels.shape[:2] == (CROP_SIZE, CROP_SIZE):
        return levels
    return square_of_pixels(np.ascontiguousarray(levels))
