"""The served form of a logged model: images in, class names and probabilities out.

``mlflow models serve`` and ``mlflow.pyfunc`` load it. Each logged model contains a copy of this
module and of the package ``alexnet``, so it is served where this project is not installed.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import torch
from mlflow.exceptions import MlflowException
from mlflow.models import Model

from alexnet.errors import UserError
from alexnet.serving import ImageClassifier

os.environ.setdefault("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")

COLUMN = "image"
"""Of a data frame: the images, if it has several columns."""

DEFAULTS = {"views": 10, "top_k": 5}
"""The parameters of a request."""


class ServedModel:
    """What MLflow calls."""

    def __init__(self, classifier: ImageClassifier) -> None:
        self._classifier = classifier

    def predict(self, model_input: Any, params: Mapping[str, Any] | None = None) -> pd.DataFrame:
        """One row for each image, with lists ``labels``, ``wnids``, ``names``, ``probabilities``.

        Args:
            model_input: images, see ``ImageClassifier``: a data frame with the column ``image``, a
                dictionary with this key, a list, an array (N, height, width, 3), or one image.
            params: ``views`` and ``top_k``.

        Raises:
            MlflowException: an image or a parameter is of no use; servers answer with status 400.
        """
        chosen = DEFAULTS | dict(params or {})
        try:
            answers = self._classifier.classify(
                _images(model_input), views=int(chosen["views"]), top_k=int(chosen["top_k"])
            )
        except UserError as error:
            raise MlflowException.invalid_parameter_value(str(error)) from error
        rows = [answer._asdict() for answer in answers]
        return pd.DataFrame(rows, columns=["labels", "wnids", "names", "probabilities"])


def _images(model_input: Any) -> Sequence[object]:
    if isinstance(model_input, Mapping):
        if COLUMN not in model_input:
            raise UserError(f'there is no "{COLUMN}" among {sorted(map(str, model_input))}')
        model_input = model_input[COLUMN]
    elif isinstance(model_input, pd.DataFrame):
        if COLUMN not in model_input and len(model_input.columns) != 1:
            raise UserError(f"there is no column {COLUMN} among {list(model_input.columns)}")
        column = COLUMN if COLUMN in model_input else model_input.columns[0]
        model_input = model_input[column].tolist()
    if isinstance(model_input, np.ndarray):
        is_one = model_input.ndim in (0, 3)
        model_input = [model_input] if is_one and model_input.ndim else model_input.tolist()
    if isinstance(model_input, str | bytes):
        return [model_input]
    if not isinstance(model_input, Sequence):
        raise UserError(f"images are expected, not {type(model_input).__name__}")
    return model_input


def _load_pyfunc(path: str, model_config: Mapping[str, Any] | None = None) -> ServedModel:
    """Load the model whose folder ``data`` is at a path; MLflow calls this function.

    ``model_config`` may name a ``device``; by default it is the first GPU, if there is one.
    """
    folder = Path(path).parent
    metadata = Model.load(str(folder)).metadata or {}
    default = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device((model_config or {}).get("device") or default)
    model = mlflow.pytorch.load_model(str(folder)).to(device)
    classes = [(str(wnid), str(name)) for wnid, name in metadata["classes"]]
    return ServedModel(ImageClassifier(model=model, classes=classes, device=device))
