"""One recorded prediction done again from the bytes of the source, in this process."""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray

from alexnet.errors import UserError
from alexnet.inference.items import ListedItem
from alexnet.inference.reading import decode_content, read_contents, read_now
from alexnet.metrics import average
from alexnet.recipes import IMAGE_SIZE
from alexnet.shards.codec import Encoding, decode_into, encode
from alexnet.shards.decode import Decoded, decode
from alexnet.shards.find import FoundRow
from alexnet.shards.manifest import Manifest
from pipelines.inference.predictor import BatchPredictor, Predictor
from pipelines.inspection.lineage_subject import Prediction, Subject
from pipelines.tracking import registry
from pipelines.tracking.store import Store

TOLERANCE = {"float32": 1e-3, "tf32": 1e-2, "bf16": 5e-2}
"""By which a probability may differ: other devices and batches round differently."""


def check_evaluated(
    store: Store,
    subject: Subject,
    prediction: Prediction,
    manifest: Manifest,
    row: FoundRow,
    data: bytes,
) -> str:
    """Repeat a prediction of an evaluation: decode, resize, encode, predict ten views.

    Args:
        store: with the models.
        subject: the evaluation.
        prediction: that was recorded.
        manifest: of the data set.
        row: of the image.
        data: its bytes in the source.

    Returns:
        How it differs; empty if it does not.
    """
    decoded = decode(data)
    if not isinstance(decoded, Decoded):
        return f"the source's bytes are {decoded.reason} now"
    settings = manifest.settings
    encoding = Encoding(kind=settings["encoding"], jpeg_quality=settings["jpeg_quality"])
    stored = encode(decoded.pixels, encoding)
    if stored != row.image:
        return (
            "the source's bytes give another image than the one in the shard: another version of "
            "Pillow, or a damaged shard"
        )
    pixels: NDArray[np.uint8] = np.empty((1, IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
    decode_into(np.frombuffer(stored, np.uint8), pixels[0])
    precisions = {uri: registry.get_model_info(store, uri).precision for uri in subject.models}
    by_view = _load(store, subject.models).views(pixels, precisions, subject.coefficients)
    tolerance = max(TOLERANCE[precision] for precision in precisions.values())
    return _difference(prediction, average(list(by_view))[0], tolerance)


def check_part(
    store: Store, models: Sequence[str], prediction: Prediction, item: ListedItem
) -> str:
    """Repeat a prediction of batch inference; returns how it differs, empty if it does not."""
    options: Mapping[str, str] = prediction.options
    with ThreadPoolExecutor(1) as threads:
        (content,) = read_contents([item], read_now, threads)
    upright = options["exif_orientation"] == "apply"
    image = decode_content(item, content, upright=upright)
    if image.sha256 != prediction.sha256:
        return f"the bytes have the sha256 {image.sha256} now, not {prediction.sha256}"
    if not isinstance(image.decoded, Decoded):
        return f"the bytes are {image.decoded.reason} now"
    classes = len(registry.get_model_info(store, models[0]).classes)
    precision = options["precision"]
    predict = BatchPredictor(
        _load(store, models),
        classes,
        views=int(options["views"]),
        layer=None,
        precision=precision,  # type: ignore[arg-type]  # An output has no others.
    )
    predicted = predict(image.decoded.pixels[np.newaxis]).probabilities[0]
    return _difference(prediction, predicted, TOLERANCE[precision])


def _load(store: Store, models: Sequence[str]) -> Predictor:
    device = torch.device("cpu")
    return Predictor({uri: registry.load_classifier(store, uri) for uri in models}, device)


def _difference(
    prediction: Prediction, probabilities: NDArray[np.float32], tolerance: float
) -> str:
    """How the probabilities of the recorded labels differ, in words; empty if they do not."""
    if max(prediction.labels, default=0) >= len(probabilities):
        raise UserError(f"{prediction.where}: names classes that the model does not have")
    again = probabilities[list(prediction.labels)]
    recorded = np.asarray(prediction.probabilities, np.float32)
    difference = float(np.abs(again - recorded).max(initial=0.0))
    if difference <= tolerance:
        return ""
    return (
        f"the probabilities of the labels {list(prediction.labels)} are "
        f"{again.round(4).tolist()} now, not {recorded.round(4).tolist()}"
    )
