"""The layout of a workdir: every name of a file or folder in it, once."""

import posixpath
from dataclasses import dataclass

from alexnet import storage


@dataclass(frozen=True, slots=True)
class Workdir:
    """Paths below a workdir, which is a local path or a URI."""

    path: str

    def relative(self, path: str) -> str:
        """A path below the workdir as one relative to it; any other path as it is."""
        prefix = self.path.rstrip("/") + "/"
        return path.removeprefix(prefix)

    def absolute(self, path: str) -> str:
        """The inverse of ``relative``."""
        return path if storage.is_remote(path) else storage.join(self.path, path)

    @property
    def database(self) -> str:
        """MLflow's SQLite file, where no other tracking store is given."""
        return storage.join(self.path, "mlflow.db")

    @property
    def artifacts(self) -> str:
        """MLflow's artifacts, where no other tracking store is given."""
        return storage.join(self.path, "mlartifacts")

    @property
    def sample(self) -> str:
        """The archives of the embedded sample."""
        return storage.join(self.path, "sample")

    @property
    def source_index(self) -> str:
        """The cached index of the source's archives."""
        return storage.join(self.path, "index")

    @property
    def checkpoints(self) -> str:
        """One folder for each training, named by the stage's key: Ray Train's storage path."""
        return storage.join(self.path, "training")

    @property
    def locks(self) -> str:
        """Lock files."""
        return storage.join(self.path, "locks")

    @property
    def logs(self) -> str:
        """One log file for each command that ran."""
        return storage.join(self.path, "logs")

    def shards(self, plan_digest: str) -> str:
        """A data set's folder."""
        return storage.join(self.path, "shards", plan_digest)

    @staticmethod
    def shards_lock(folder: str) -> str:
        """The name of a data set's lock."""
        return f"shards-{posixpath.basename(folder)}"

    def predictions(self, key: str) -> str:
        """An evaluation's predictions."""
        return storage.join(self.path, "evaluations", key, "predictions.parquet")

    def records(self, stage: str) -> str:
        """A stage's records."""
        return storage.join(self.path, "stages", stage)

    def record(self, stage: str, key: str) -> str:
        """The record of one key of a stage."""
        return storage.join(self.records(stage), f"{key}.json")
