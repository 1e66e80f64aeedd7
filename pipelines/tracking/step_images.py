"""Images of a run over its steps; the UI shows them with a slider."""

import re
from dataclasses import dataclass

from mlflow import MlflowClient
from PIL import Image

_FOLDER = "images"
_NAME = re.compile(r"images/(?P<key>.+?)[+%]step[+%](?P<step>\d+)[+%]timestamp[+%].*\.png")
"""As MLflow names them; older versions separate by ``%``."""


@dataclass(frozen=True, slots=True)
class StepImages:
    """Images of a run."""

    uri: str
    """Of the tracking store."""
    run_id: str

    def known(self) -> set[tuple[str, int]]:
        """Keys and steps of the images that are stored."""
        client = MlflowClient(self.uri, self.uri)
        names = (_NAME.fullmatch(file.path) for file in client.list_artifacts(self.run_id, _FOLDER))
        return {(name["key"].replace("~", "/"), int(name["step"])) for name in names if name}

    def log(self, key: str, step: int, image: Image.Image) -> None:
        """Store an image."""
        client = MlflowClient(self.uri, self.uri)
        client.log_image(self.run_id, image, key=key, step=step)
