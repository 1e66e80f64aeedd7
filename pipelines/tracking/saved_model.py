"""The files of a logged model: an export of PyTorch, and what MLflow needs to serve it.

This module is a *flavor* of MLflow: ``Model.log`` calls its ``save_model``.
"""

import base64
import json
import shutil
import tempfile
from importlib.metadata import version
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow
import numpy as np
from mlflow.models import Model, ModelSignature
from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema, TensorSpec
from mlflow.types.schema import Array, DataType
from numpy.typing import NDArray
from PIL import Image

import alexnet
from alexnet.provenance import import_closure
from pipelines.tracking import alexnet_serving

if TYPE_CHECKING:
    from torch import nn

SERVED_SIGNATURE = ModelSignature(
    # Inputs are not declared: MLflow would then accept either bytes or arrays, not both.
    outputs=Schema(
        [
            ColSpec(Array(DataType.long), "labels"),
            ColSpec(Array(DataType.string), "wnids"),
            ColSpec(Array(DataType.string), "names"),
            ColSpec(Array(DataType.double), "probabilities"),
        ]
    ),
    params=ParamSchema(
        [ParamSpec(name, "integer", value) for name, value in alexnet_serving.DEFAULTS.items()]
    ),
)

REQUIREMENTS = ("mlflow", "numpy", "pandas", "pillow", "pyarrow", "simplejpeg", "torch")
"""Packages that serving imports."""


def save_model(
    path: str,
    mlflow_model: Model,
    classifier: "nn.Module",
    example: NDArray[np.uint8],
    classes: int,
) -> None:
    """Save a crop classifier into a new folder.

    Args:
        path: the folder.
        mlflow_model: with its metadata.
        classifier: of crops.
        example: (2, 224, 224, 3) crops, with which it is exported.
        classes: that it tells apart.
    """
    crops = Schema([TensorSpec(np.dtype(np.uint8), (-1, *example.shape[1:]), "crops")])
    probabilities = Schema([TensorSpec(np.dtype(np.float32), (-1, classes), "probabilities")])
    with tempfile.TemporaryDirectory() as code:
        mlflow.pytorch.save_model(
            classifier,
            path,
            mlflow_model=mlflow_model,
            input_example=example,
            signature=ModelSignature(inputs=crops, outputs=probabilities),
            code_paths=[_copy_package(Path(code)), alexnet_serving.__file__],
            # MLflow would infer these by loading the model once more in a new process.
            pip_requirements=[_requirement(name) for name in REQUIREMENTS],
        )
    served = mlflow_model.flavors["python_function"]
    served["loader_module"] = Path(alexnet_serving.__file__).stem
    # Commands of this project load the export alone, and no code with it.
    mlflow_model.flavors["pytorch"]["code"] = None
    mlflow_model.signature = SERVED_SIGNATURE
    _write_example(Path(path), mlflow_model, example[0])
    mlflow_model.save(str(Path(path, "MLmodel")))


def _copy_package(folder: Path) -> str:
    """Copy what serving imports of the package ``alexnet``: each file is a request to a server."""
    package = Path(alexnet.__file__).parent
    for name in import_closure(["alexnet.serving"]):
        module = Path(*name.split(".")).with_suffix(".py")
        source = package.parent / module
        if not source.is_file():
            module = Path(*name.split("."), "__init__.py")
        for needed in (module, *(parent / "__init__.py" for parent in module.parents[:-1])):
            (folder / needed).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(package.parent / needed, folder / needed)
    return str(folder / package.name)


def _write_example(folder: Path, mlflow_model: Model, crop: NDArray[np.uint8]) -> None:
    """Replace the example by a request as clients send it: an image file as base64."""
    buffer = BytesIO()
    Image.fromarray(crop).save(buffer, "JPEG")
    column = alexnet_serving.COLUMN
    table = {"columns": [column], "data": [[base64.b64encode(buffer.getvalue()).decode()]]}
    mlflow_model.saved_input_example_info = {
        "artifact_path": "input_example.json",
        "serving_input_path": "serving_input_example.json",
        "type": "dataframe",
        "pandas_orient": "split",
    }
    files: dict[str, Any] = {
        "input_example.json": table,
        "serving_input_example.json": {"dataframe_split": table},
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))


def _requirement(name: str) -> str:
    """The installed version of a package, without a local suffix that no package index has."""
    return f"{name}=={version(name).partition('+')[0]}"
