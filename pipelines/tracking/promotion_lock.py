"""One promotion at a time for each registered model, also between computers.

MLflow can't move an alias on the condition that it still points to a certain version. So whoever
decides about an alias first writes a tag of its own to the registered model, and then reads the
tags of all: of two that write, the one that reads last sees the other's tag. It removes its own
and tries again after a random time. Thus two are never inside together.
"""

import contextlib
import random
import time
import uuid
from collections.abc import Iterator

from mlflow.exceptions import MlflowException

from pipelines.console.log import stage_logger
from pipelines.tracking.store import Store, require_server

PREFIX = "promoting."
EXPIRES_S = 120
"""After this time a tag is taken for that of a process that was killed."""
RETRY_S = (0.1, 0.6)


@contextlib.contextmanager
def promotion_lock(store: Store, name: str) -> Iterator[None]:
    """Wait until no other promotion of a name is running; the name is created if necessary."""
    own = PREFIX + uuid.uuid4().hex
    with require_server(store.uri):
        with contextlib.suppress(MlflowException):  # It exists already.
            store.client.create_registered_model(name)
        waiting = False
        while not _entered(store, name, own):
            if not waiting:
                stage_logger("promote").info("waiting for another promotion of %s", name)
                waiting = True
            time.sleep(random.uniform(*RETRY_S))
    try:
        yield
    finally:
        with contextlib.suppress(MlflowException):
            store.client.delete_registered_model_tag(name, own)


def _entered(store: Store, name: str, own: str) -> bool:
    now = time.time()
    store.client.set_registered_model_tag(name, own, str(now))
    tags = store.client.get_registered_model(name).tags
    others = [
        key
        for key, since in tags.items()
        if key.startswith(PREFIX) and key != own and now - float(since) < EXPIRES_S
    ]
    if others:
        store.client.delete_registered_model_tag(name, own)
    return not others
