"""A logged model as ``mlflow.pyfunc`` and ``mlflow models serve`` load it: images in, names out."""

import base64
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
import torch
from factories import narrow_network, random_crops
from mlflow.exceptions import MlflowException
from numpy.typing import NDArray
from PIL import Image

from alexnet import serving
from alexnet.model.classifier import CropClassifier
from alexnet.recipes import SOURCE145
from alexnet.shards.decode import Decoded, decode
from alexnet.training.augment import CENTRE_VIEW, ten_crop
from pipelines.settings import Settings
from pipelines.tracking import registry
from pipelines.tracking.run import active_run, open_run
from pipelines.tracking.store import Store, connect

pytestmark = pytest.mark.slow

CLASSES = [["n01", "tench, Tinca tinca"], ["n02", "<b>cat</b>"], ["n03", "é"]]
START_S = 120
"""That a server may take to start."""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return connect(Settings(workdir=str(tmp_path_factory.mktemp("work"))))


@pytest.fixture(scope="module")
def classifier() -> CropClassifier:
    network = narrow_network(SOURCE145, len(CLASSES))
    return CropClassifier(network, torch.full((3, 224, 224), 120.0))


@pytest.fixture(scope="module")
def folder(
    store: Store, classifier: CropClassifier, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The files of a logged model."""
    example = random_crops(2).numpy()
    with (
        active_run(store, open_run(store, "train", resume=None, parent=None)) as run,
        torch.no_grad(),
    ):
        uri = run.log_model(classifier, example, {"classes": CLASSES, "shards": "abc"})
    assert registry.get_model_info(store, uri).classes[2] == ("n03", "é")
    target = tmp_path_factory.mktemp("downloaded")
    return Path(mlflow.artifacts.download_artifacts(uri, dst_path=str(target)))


@pytest.fixture(scope="module")
def served(folder: Path) -> mlflow.pyfunc.PyFuncModel:
    return mlflow.pyfunc.load_model(str(folder))


def pixels(seed: int, height: int = 300, width: int = 400) -> NDArray[np.uint8]:
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), np.uint8)
    size = (width, height)
    return np.asarray(Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC))


def file_of(image: NDArray[np.uint8], kind: str = "PNG", **options: Any) -> bytes:
    buffer = BytesIO()
    Image.fromarray(image).save(buffer, kind, **options)
    return buffer.getvalue()


def as_base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def expected(classifier: CropClassifier, data: bytes, views: int) -> NDArray[np.float32]:
    decoded = decode(data)
    assert isinstance(decoded, Decoded)
    crops = ten_crop(torch.from_numpy(decoded.pixels)[None])[:, 0]
    with torch.no_grad():
        by_view = classifier(crops if views == 10 else crops[CENTRE_VIEW : CENTRE_VIEW + 1])
    mean: NDArray[np.float32] = by_view.mean(dim=0).numpy()
    return mean


@pytest.mark.parametrize("views", [1, 10])
def test_bytes_base64_and_arrays_of_the_same_image_have_the_same_answer(
    classifier: CropClassifier, served: mlflow.pyfunc.PyFuncModel, views: int
) -> None:
    image = pixels(0)
    data = file_of(image)
    want = expected(classifier, data, views)
    params = {"views": views, "top_k": 3}
    inputs = [
        pd.DataFrame({"image": [data]}),
        pd.DataFrame({"image": [as_base64(data)], "name": ["x"]}),
        {"image": [as_base64(data)]},
        [data],
        data,
        f"data:image/png;base64,{as_base64(data)}",
        image,
        image[None].astype(np.int64),
        image[None].tolist(),
    ]
    for given in inputs:
        answer = served.predict(given, params=params)
        assert len(answer) == 1
        row = answer.iloc[0]
        np.testing.assert_allclose(row["probabilities"], np.sort(want)[::-1], rtol=1e-5)
        assert row["labels"] == np.argsort(-want).tolist()
        assert row["names"] == [CLASSES[label][1] for label in row["labels"]]
        assert row["wnids"] == [CLASSES[label][0] for label in row["labels"]]


def test_a_batch_of_images_of_all_kinds_is_answered_in_order(
    classifier: CropClassifier,
    served: mlflow.pyfunc.PyFuncModel,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(serving, "BATCH_CROPS", 4)
    files = [file_of(pixels(seed, 260 + seed, 300)) for seed in range(5)]
    crop = random_crops(1)[0].numpy()
    answer = served.predict([*files, crop], params={"top_k": 1, "views": 1})
    best = [int(expected(classifier, data, 1).argmax()) for data in files]
    assert [row[0] for row in answer["labels"][:5]] == best
    with torch.no_grad():
        alone = classifier(torch.from_numpy(crop)[None])[0]
    assert answer["probabilities"][5][0] == pytest.approx(float(alone.max()), rel=1e-5)
    assert all(len(names) == 1 for names in answer["names"])


def test_a_photograph_is_turned_as_its_exif_says(served: mlflow.pyfunc.PyFuncModel) -> None:
    image = pixels(1)
    exif = Image.Exif()
    exif[0x0112] = 6  # Turn clockwise to see it upright.
    turned = file_of(np.rot90(image), "PNG", exif=exif)
    first, second = served.predict([file_of(image), turned], params={"top_k": 3})["probabilities"]
    np.testing.assert_allclose(first, second, rtol=1e-5)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([b"no image"], "image 0: not an image"),
        ([file_of(pixels(0)), file_of(pixels(0))[:300]], "image 1: truncated"),
        ([b""], "image 0: empty"),
        (["%%%"], "image 0: the text is not base64"),
        ([np.zeros((10, 10))], r"image 0: an array of shape \(10, 10\)"),
        ([np.full((10, 10, 3), 256)], "image 0: an array with other values than"),
        ([np.full((10, 10, 3), 0.5)], "image 0: an array with other values than"),
        ([np.full((10, 10, 3), np.nan)], "image 0: an array with other values than"),
        ([[[1, 2], [3]]], "image 0: neither bytes, base64 text nor an array of one shape"),
        ([None], "image 0: "),
        ({"picture": ["x"]}, 'there is no "image"'),
        (pd.DataFrame({"a": ["x"], "b": ["y"]}), "there is no column image"),
        (7, "images are expected, not int"),
    ],
)
def test_what_is_no_image_is_named_on_one_line(
    served: mlflow.pyfunc.PyFuncModel, given: Any, message: str
) -> None:
    with pytest.raises(MlflowException, match=message) as caught:
        served.predict(given)
    assert caught.value.get_http_status_code() == 400
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("params", "message"), [({"views": 3}, "views is 3"), ({"top_k": 0}, "top_k is 0")]
)
def test_parameters_out_of_range_are_named(
    served: mlflow.pyfunc.PyFuncModel, params: Mapping[str, int], message: str
) -> None:
    with pytest.raises(MlflowException, match=message):
        served.predict([file_of(pixels(0))], params=params)


def test_no_images_have_no_answers(served: mlflow.pyfunc.PyFuncModel) -> None:
    assert len(served.predict(pd.DataFrame({"image": []}))) == 0


def without_project(folder: Path) -> dict[str, str]:
    """An environment in which Python does not find this project's sources by a path."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
        "HOME": str(folder),
    }


def test_it_is_served_by_the_code_that_it_contains_and_with_pickle_forbidden(
    folder: Path, tmp_path: Path
) -> None:
    script = (
        "import mlflow, sys; mlflow.pyfunc.load_model(sys.argv[1]); import alexnet;"
        "print(alexnet.__file__); print('pipelines' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(folder)],
        cwd=tmp_path,
        env=without_project(tmp_path),
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == [str(folder / "code" / "alexnet" / "__init__.py"), "False"]


def test_loading_the_network_does_not_let_its_code_be_imported(folder: Path) -> None:
    before = list(sys.path)
    mlflow.pytorch.load_model(str(folder))
    assert sys.path == before


@pytest.fixture(scope="module")
def address(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    home = tmp_path_factory.mktemp("home")
    command = ["mlflow", "models", "serve", "--model-uri", str(folder), "--env-manager", "local"]
    with (home / "log.txt").open("wb") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", *command, "--host", "127.0.0.1", "--port", str(port)],
            cwd=home,
            env=without_project(home),
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(10 * START_S):
            assert server.poll() is None, (home / "log.txt").read_text()
            try:
                urllib.request.urlopen(f"{url}/ping", timeout=5).close()
                break
            except OSError:
                time.sleep(0.1)
        yield url
    finally:
        os.killpg(server.pid, 15)
        server.wait()


def post(address: str, body: Mapping[str, Any]) -> Any:
    request = urllib.request.Request(
        f"{address}/invocations",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60) as response:
        return json.load(response)["predictions"]


def test_a_server_answers_base64_and_arrays_over_http(
    address: str, folder: Path, classifier: CropClassifier
) -> None:
    image = pixels(3)
    text = as_base64(file_of(image))
    want = np.argsort(-expected(classifier, file_of(image), 10)).tolist()
    bodies: list[dict[str, Any]] = [
        {"dataframe_split": {"columns": ["image"], "data": [[text]]}},
        {"dataframe_records": [{"image": text}]},
        {"inputs": [text]},
        {"inputs": {"image": [text]}},
        {"instances": [text]},
        {"inputs": image[None].tolist()},
    ]
    for body in bodies:
        answers = post(address, body)
        assert [answer["labels"] for answer in answers] == [want]
    one = post(address, bodies[0] | {"params": {"top_k": 1, "views": 1}})[0]
    assert one["names"] == [CLASSES[one["labels"][0]][1]]
    example = json.loads((folder / "serving_input_example.json").read_text())
    assert len(post(address, example)[0]["probabilities"]) == len(CLASSES)


def test_a_server_answers_bad_requests_with_400_and_the_reason(address: str) -> None:
    with pytest.raises(urllib.error.HTTPError) as caught:
        post(address, {"inputs": [as_base64(b"no image")]})
    assert caught.value.code == 400
    assert "image 0: not an image" in json.load(caught.value)["message"]
