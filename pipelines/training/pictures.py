"""Pictures of a training while it runs, drawn and logged in the background.

They never cost work: the training waits neither for a drawing nor for the tracking server, and an
error costs only the pictures of that step.
"""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from typing import Protocol

import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from alexnet.diagnostics.layers import activations
from alexnet.model.towers import AlexNet
from alexnet.plots import figures, training
from alexnet.shards.codec import read_images
from alexnet.shards.manifest import Manifest
from alexnet.training.augment import centre_crops, centre_view
from pipelines.console.redact import shortened

TIME_SHARE = 0.05
"""Of the time, at most, in which pictures are drawn."""

TIMEOUT_S = 60
"""That is waited for a drawing at the end."""

IMAGES = 64
"""Validation images by which dead units are found, at most."""


class ImageSink(Protocol):
    """Where pictures are stored."""

    def known(self) -> set[tuple[str, int]]:
        """Keys and steps of the pictures that are there, some from before a restart."""

    def log(self, key: str, step: int, image: Image.Image) -> None:
        """Store a picture."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Moment:
    """A copy of what the pictures of a step show, on the CPU."""

    step: int
    weights: Mapping[str, Tensor]
    gradients: Mapping[str, Sequence[float]]
    history: Sequence[Mapping[str, float]]


class Pictures:
    """Pictures of one training."""

    def __init__(
        self, sink: ImageSink, manifest: Manifest, mean: Tensor, report: Callable[[str], None]
    ) -> None:
        """Prepare; nothing is read.

        Args:
            sink: where they are stored.
            manifest: of the data set.
            mean: (3, 224, 224), subtracted from every crop.
            report: is told in one line about the first pictures that are lost.
        """
        self._sink, self._manifest, self._report = sink, manifest, report
        self._mean = mean.cpu()
        self._images: Tensor | None = None
        self._thread: threading.Thread | None = None
        self._next = 0.0
        self._lost = False

    def after_epoch(
        self,
        network: AlexNet,
        step: int,
        history: Sequence[Mapping[str, float]],
        gradients: Mapping[str, Sequence[float]],
        *,
        last: bool,
    ) -> None:
        """Copy what is needed and draw in the background, unless the last drawing was just now.

        Args:
            network: after an update, on any devices.
            step: number of the update.
            history: as for ``figures.learning_curves``.
            gradients: norms, from ``diagnostics.layers.gradient_norms``.
            last: draw in any case.
        """
        if last:
            self.finish()
        if self._is_drawing() or not (last or time.monotonic() >= self._next):
            return
        moment = _Moment(
            step=step,
            weights={n: p.detach().to("cpu", copy=True) for n, p in network.named_parameters()},
            gradients=gradients,
            history=[dict(record) for record in history],
        )
        self._thread = threading.Thread(
            target=self._draw, args=(network, moment), name="pictures", daemon=True
        )
        self._thread.start()

    def finish(self) -> None:
        """Wait until no drawing runs, at most ``TIMEOUT_S``."""
        if self._thread:
            self._thread.join(TIMEOUT_S)

    def _is_drawing(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def _draw(self, network: AlexNet, moment: _Moment) -> None:
        started = time.monotonic()
        try:
            known = self._sink.known()
            for key, draw in self._drawings(network, moment).items():
                if (key, moment.step) not in known:
                    self._sink.log(key, moment.step, _as_image(draw()))
        except Exception as error:  # Whatever it is, it must not stop the training.
            if not self._lost:
                self._report(
                    f"the pictures of step {moment.step} could not be logged "
                    f"({shortened(error, 200)}); the training continues without"
                )
            self._lost = True
        ended = time.monotonic()
        self._next = ended + (ended - started) * (1 / TIME_SHARE - 1)

    def _drawings(self, network: AlexNet, moment: _Moment) -> dict[str, Callable[[], Figure]]:
        """The pictures by key."""
        images = self._validation_images()
        crops = centre_crops(images, self._mean)
        found = activations(moment.weights, network.recipe, network.fc8.out_features, crops)
        kernels = [
            moment.weights[f"towers.{tower}.conv1.weight"].numpy()
            for tower in range(network.recipe.towers)
        ]
        return {
            "learning_curves": lambda: figures.learning_curves(moment.history),
            "first_layer_kernels": lambda: figures.first_layer_kernels(kernels),
            "activations": lambda: training.activation_maps(
                centre_view(images)[0].numpy(), found.maps
            ),
            "layers": lambda: training.layer_statistics(moment.gradients, found.dead, len(images)),
        }

    def _validation_images(self) -> Tensor:
        """(N, 256, 256, 3) uint8: the first ones, read once. Shards are shuffled."""
        if self._images is None:
            with ThreadPoolExecutor(1) as decoders:
                _, pixels = read_images(self._manifest.row_groups("val")[0], [], decoders)
            self._images = torch.from_numpy(pixels[:IMAGES].copy())
        return self._images


def _as_image(figure: Figure) -> Image.Image:
    buffer = BytesIO()
    figure.savefig(buffer, format="png")
    return Image.open(buffer)
